# Strand, threads and metrics around the core; no gRPC of its own.
consilium_library(attention_shell SRCS attention_shell.cc attention_metrics.cc DEPS attention_core exec log metrics)
consilium_library(attention_service SRCS attention_service.cc DEPS attention_shell config log session_proto)
consilium_test(attention_shell_test SRCS attention_shell_test.cc DEPS attention_service attention_shell hash_backend proto)
# A worker on CPU kernels, without a door: for the service and for the one-process mode.
consilium_library(attention_worker SRCS attention_worker.cc DEPS attention_shell attention_cpu model kernels exec net)
consilium_binary(consilium-attention SRCS main.cc
  DEPS attention_service attention_worker config log metrics net_grpc control_client)
