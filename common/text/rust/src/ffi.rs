//! Moving text, ids and errors over the C boundary.
use std::panic::{catch_unwind, AssertUnwindSafe};

pub type Error = Box<dyn std::error::Error + Send + Sync>;

#[repr(C)]
pub struct Buffer { data: *mut u8, len: usize }

#[repr(C)]
pub struct Ids { data: *mut u32, len: usize }

fn leak<T>(v: Vec<T>) -> (*mut T, usize) {
    let b = v.into_boxed_slice();
    let len = b.len();
    (Box::into_raw(b) as *mut T, len)
}
unsafe fn unleak<T>(data: *mut T, len: usize) {
    if !data.is_null() {
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(data, len)));
    }
}
impl From<String> for Buffer {
    fn from(s: String) -> Self { let (data, len) = leak(s.into_bytes()); Self { data, len } }
}
impl From<Vec<u8>> for Buffer {
    fn from(v: Vec<u8>) -> Self { let (data, len) = leak(v); Self { data, len } }
}
impl From<Vec<u32>> for Ids {
    fn from(v: Vec<u32>) -> Self { let (data, len) = leak(v); Self { data, len } }
}

#[no_mangle]
pub unsafe extern "C" fn ct_buffer_free(b: Buffer) { unleak(b.data, b.len) }
#[no_mangle]
pub unsafe extern "C" fn ct_ids_free(b: Ids) { unleak(b.data, b.len) }

pub unsafe fn slice<'a, T>(p: *const T, n: usize) -> &'a [T] {
    if n == 0 { &[] } else { std::slice::from_raw_parts(p, n) }
}
pub unsafe fn text<'a>(p: *const u8, n: usize) -> Result<&'a str, Error> {
    Ok(std::str::from_utf8(slice(p, n))?)
}

/// Runs `f`, stores its value in `out`; an error or a panic becomes a message in `error` and -1.
pub unsafe fn call<T>(out: *mut T, error: *mut Buffer, f: impl FnOnce() -> Result<T, Error>) -> i32 {
    let message = match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(value)) => { out.write(value); return 0; }
        Ok(Err(e)) => { // the whole chain of causes
            let mut s = e.to_string();
            let mut cause = e.source();
            while let Some(c) = cause { s += &format!(": {c}"); cause = c.source(); }
            s
        }
        Err(p) => format!("panic: {}", p.downcast_ref::<String>().map(String::as_str)
            .or(p.downcast_ref::<&str>().copied()).unwrap_or("unknown")),
    };
    error.write(message.into());
    -1
}
pub fn handle<T>(value: T) -> *mut T { Box::into_raw(Box::new(value)) }
pub unsafe fn release<T>(p: *mut T) { if !p.is_null() { drop(Box::from_raw(p)) } }
