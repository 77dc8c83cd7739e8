consilium_library(sampler SRCS ${CMAKE_CURRENT_LIST_DIR}/sampler.cc DEPS base kernels)
consilium_test(sampler_test SRCS ${CMAKE_CURRENT_LIST_DIR}/sampler_test.cc DEPS sampler)
