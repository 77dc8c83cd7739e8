consilium_library(attention_core
  SRCS attention_core.cc attention_dispatch.cc attention_flights.cc attention_requests.cc dispatch_combine.cc kv_store.cc
       state_store.cc step_planner.cc
  DEPS base tensor net placement)
consilium_test(attention_core_test
  SRCS attention_core_test.cc attention_states_test.cc dispatch_combine_test.cc kv_store_test.cc
       state_store_test.cc step_planner_test.cc
  DEPS attention_core hash_backend)
