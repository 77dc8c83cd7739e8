# control_messages and placement_fold are plain; the gRPC side is in two .cc files.
consilium_library(placement_fold SRCS placement_fold.cc DEPS base placement)
consilium_library(control_client SRCS grpc_control_client.cc control_proto.cc DEPS base placement placement_fold proto)
consilium_test(placement_fold_test SRCS placement_fold_test.cc DEPS placement_fold)
