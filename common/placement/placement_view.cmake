consilium_library(placement SRCS placement_view.cc replica_choice.cc DEPS base)
consilium_test(placement_view_test SRCS placement_view_test.cc replica_choice_test.cc DEPS placement)
