consilium_library(planner SRCS planner.cc DEPS base)
consilium_test(planner_test SRCS planner_test.cc DEPS planner)
