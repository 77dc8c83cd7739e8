//! Tokenizers of Hugging Face's tokenizer.json, and what each token stands for in bytes.
use crate::ffi::*;
use std::collections::HashMap;

pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bytes: Bytes,
    size: usize, // highest id + 1: ids may have gaps
}

/// How the decoder turns tokens into bytes, read from tokenizer.json.
enum Bytes {
    /// GPT-2's alphabet: each character is a byte.
    ByteLevel(HashMap<char, u8>),
    /// SentencePiece: "▁" is a space, "<0xNN>" a byte.
    Fallback,
}

fn gpt2_alphabet() -> HashMap<char, u8> {
    let plain = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut next = 256;
    (0..=255u8)
        .map(|b| {
            let c = if plain(b) { b as u32 } else { next += 1; next - 1 };
            (char::from_u32(c).unwrap(), b)
        })
        .collect()
}

impl Bytes {
    fn of(json: &serde_json::Value) -> Result<Self, Error> {
        let decoder = &json["decoder"];
        let kind = |d: &serde_json::Value| d["type"].as_str().unwrap_or("none").to_string();
        let parts = match decoder["decoders"].as_array() {
            Some(list) => list.iter().map(kind).collect(),
            None => vec![kind(decoder)],
        };
        let all = |known: &[&str]| parts.iter().all(|p| known.contains(&p.as_str()));
        if all(&["ByteLevel", "Fuse"]) { return Ok(Bytes::ByteLevel(gpt2_alphabet())) }
        if all(&["ByteFallback", "Metaspace", "Replace", "Fuse", "Strip"]) { return Ok(Bytes::Fallback) }
        Err(format!("decoder {parts:?} is not supported: expected ByteLevel, or ByteFallback and Metaspace").into())
    }
    fn text(&self, token: &str) -> Vec<u8> {
        match self {
            Bytes::ByteLevel(alphabet) => token.chars().map(|c| alphabet.get(&c).copied()).collect::<Option<Vec<u8>>>()
                .unwrap_or_else(|| token.as_bytes().to_vec()),
            Bytes::Fallback => {
                let hex = token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>')).filter(|t| t.len() == 2);
                match hex.and_then(|t| u8::from_str_radix(t, 16).ok()) {
                    Some(byte) => vec![byte],
                    None => token.replace('▁', " ").into_bytes(),
                }
            }
        }
    }
}

#[no_mangle]
pub unsafe extern "C" fn ct_tokenizer_new(json: *const u8, len: usize, out: *mut *mut Tokenizer, error: *mut Buffer) -> i32 {
    call(out, error, || {
        let json = slice(json, len);
        let inner = tokenizers::Tokenizer::from_bytes(json)?;
        let bytes = Bytes::of(&serde_json::from_slice(json)?)?;
        let size = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        Ok(handle(Tokenizer { inner, bytes, size }))
    })
}
#[no_mangle]
pub unsafe extern "C" fn ct_tokenizer_free(t: *mut Tokenizer) { release(t) }
#[no_mangle]
pub unsafe extern "C" fn ct_tokenizer_vocab_size(t: *const Tokenizer) -> usize { (*t).size }

#[no_mangle]
pub unsafe extern "C" fn ct_encode(t: *const Tokenizer, p: *const u8, len: usize, add_special: i32, out: *mut Ids, error: *mut Buffer) -> i32 {
    call(out, error, || Ok((*t).inner.encode_fast(text(p, len)?, add_special != 0)?.get_ids().to_vec().into()))
}
#[no_mangle]
pub unsafe extern "C" fn ct_decode(t: *const Tokenizer, ids: *const u32, n: usize, skip_special: i32, out: *mut Buffer, error: *mut Buffer) -> i32 {
    call(out, error, || Ok((*t).inner.decode(slice(ids, n), skip_special != 0)?.into()))
}

/// Bytes of one token (empty for an unknown id); *special is 1 for tokens that skip_special leaves out.
#[no_mangle]
pub unsafe extern "C" fn ct_token_bytes(t: *const Tokenizer, id: u32, special: *mut i32, out: *mut Buffer, error: *mut Buffer) -> i32 {
    call(out, error, || {
        let t = &*t;
        let added = t.inner.get_added_vocabulary().get_added_tokens_decoder().get(&id);
        special.write(added.is_some_and(|a| a.special) as i32);
        Ok(match added {
            Some(token) => token.content.clone().into_bytes(),
            None => t.inner.id_to_token(id).map_or(vec![], |token| t.bytes.text(&token)),
        }.into())
    })
}
