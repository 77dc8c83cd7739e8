consilium_library(hash_backend SRCS hash_backend.cc DEPS base tensor absl::statusor)
consilium_test(hash_backend_test SRCS hash_backend_test.cc DEPS hash_backend)
