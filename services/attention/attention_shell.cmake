# Strand, threads and metrics around the core; no gRPC of its own.
consilium_library(attention_shell SRCS attention_shell.cc attention_metrics.cc DEPS attention_core exec log metrics)
consilium_library(attention_service SRCS attention_service.cc DEPS attention_shell config log proto)
consilium_test(attention_shell_test SRCS attention_shell_test.cc DEPS attention_service attention_shell hash_backend proto)
if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/attention_cpu.cmake)
  consilium_binary(consilium-attention SRCS main.cc
    DEPS attention_service attention_shell attention_cpu config log metrics model kernels exec net_grpc control_client)
endif()
