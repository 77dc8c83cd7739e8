/* C interface of the text library (common/text/rust): tokenizer and chat templates.
   Every function that can fail returns 0 on success; on failure it returns -1 and *error holds a message to
   be released with ct_buffer_free. Handles are immutable and may be shared between threads. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  uint8_t* data;
  size_t len;
} ct_buffer; /* len bytes, not NUL-terminated */
typedef struct {
  uint32_t* data;
  size_t len;
} ct_ids;
typedef struct ct_tokenizer ct_tokenizer;
typedef struct ct_template ct_template;

void ct_buffer_free(ct_buffer buffer);
void ct_ids_free(ct_ids ids);

int ct_tokenizer_new(const char* json, size_t len, ct_tokenizer** out, ct_buffer* error);
void ct_tokenizer_free(ct_tokenizer* tokenizer);
size_t ct_tokenizer_vocab_size(const ct_tokenizer* tokenizer); /* highest id + 1 */
int ct_encode(const ct_tokenizer* tokenizer, const char* text, size_t len, int add_special, ct_ids* out,
              ct_buffer* error);
int ct_decode(const ct_tokenizer* tokenizer, const uint32_t* ids, size_t n, int skip_special, ct_buffer* out,
              ct_buffer* error);
/* What the token stands for (no bytes for an unknown id); *special: it is left out when special tokens are
 * skipped. */
int ct_token_bytes(const ct_tokenizer* tokenizer, uint32_t id, int* special, ct_buffer* out,
                   ct_buffer* error);

/* context: one JSON object (messages, tools, add_generation_prompt, bos_token, ...). */
int ct_template_new(const char* source, size_t len, ct_template** out, ct_buffer* error);
int ct_template_render(const ct_template* tmpl, const char* context, size_t len, ct_buffer* out,
                       ct_buffer* error);
void ct_template_free(ct_template* tmpl);

#ifdef __cplusplus
}
#endif
