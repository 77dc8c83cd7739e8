//! C interface of the text library; see ../consilium_text.h for the contract.
mod ffi;
mod template;
mod tokenizer;
