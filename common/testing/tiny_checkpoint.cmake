consilium_library(tiny_checkpoint SRCS tiny_checkpoint.cc DEPS model base nlohmann_json::nlohmann_json)
consilium_test(tiny_checkpoint_test SRCS tiny_checkpoint_test.cc
  DEPS tiny_checkpoint model text nlohmann_json::nlohmann_json)
