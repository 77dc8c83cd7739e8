# ExpertBackend on CPU kernels.
consilium_library(expert_cpu SRCS cpu_expert_backend.cc DEPS model kernels exec base)
consilium_test(expert_cpu_test SRCS cpu_expert_backend_test.cc DEPS expert_cpu tiny_checkpoint)
