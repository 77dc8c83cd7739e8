# LayerBackend on CPU kernels.
consilium_library(attention_cpu
  SRCS cache_split.cc cpu_layer_backend.cc cpu_layer_backend_attention.cc cpu_layer_backend_conv.cc cpu_layer_backend_delta.cc cpu_layer_backend_weights.cc
  DEPS model kernels exec tensor sampler log base)
consilium_test(attention_cpu_test SRCS cpu_layer_backend_test.cc DEPS attention_cpu tiny_checkpoint)
