# What every folder needs: third-party libraries and three short helper functions.
find_program(CCACHE ccache)
if(CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE})
endif()
find_program(MOLD mold)
if(MOLD)
  add_link_options(-fuse-ld=mold)
endif()

find_package(Threads REQUIRED)
find_package(Protobuf REQUIRED)               # module mode: Debian ships no config file
find_package(gRPC CONFIG REQUIRED)            # finds absl and re2 as well
find_package(absl CONFIG REQUIRED)
find_package(prometheus-cpp CONFIG REQUIRED)
find_package(GTest CONFIG REQUIRED)
find_package(benchmark CONFIG REQUIRED)
find_package(Boost 1.74 REQUIRED)             # headers only
find_package(OpenSSL REQUIRED)
find_package(nlohmann_json CONFIG REQUIRED)
find_package(CLI11 CONFIG REQUIRED)
find_path(XXHASH_INCLUDE_DIR xxhash.h REQUIRED)
include(GoogleTest)

# One class of numbers everywhere: no contraction, no fast-math (docs/NUMERICS.md).
add_compile_options(-ffp-contract=off -fno-fast-math -fno-plt)
if(CONSILIUM_SANITIZE)
  add_compile_options(-fsanitize=${CONSILIUM_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${CONSILIUM_SANITIZE})
endif()
if(CONSILIUM_FUZZ)
  add_compile_options(-fsanitize=fuzzer-no-link)  # coverage of the libraries, which steers the fuzzer
endif()
add_compile_definitions(CONSILIUM_VERSION="${PROJECT_VERSION}")

function(consilium_warnings target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wshadow $<$<BOOL:${CONSILIUM_WERROR}>:-Werror>)
  target_include_directories(${target} PUBLIC ${CMAKE_SOURCE_DIR})
endfunction()

# consilium_library(name SRCS a.cc b.cc DEPS x y)
function(consilium_library name)
  cmake_parse_arguments(A "" "" "SRCS;DEPS" ${ARGN})
  add_library(${name} STATIC ${A_SRCS})
  consilium_warnings(${name})
  target_link_libraries(${name} PUBLIC ${A_DEPS})
endfunction()

# consilium_binary(name SRCS main.cc DEPS x)
function(consilium_binary name)
  cmake_parse_arguments(A "" "" "SRCS;DEPS" ${ARGN})
  add_executable(${name} ${A_SRCS})
  consilium_warnings(${name})
  target_link_libraries(${name} PRIVATE ${A_DEPS})
endfunction()

# consilium_test(name SRCS a_test.cc b_test.cc DEPS x [LABELS unit|golden|sim|integration] [TIMEOUT s])
# One program per room, many files each. ctest runs the whole program as one test entry per gtest suite file.
function(consilium_test name)
  cmake_parse_arguments(A "" "TIMEOUT" "SRCS;DEPS;LABELS" ${ARGN})
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 300)
  endif()
  if(NOT A_LABELS)
    set(A_LABELS unit)
  endif()
  consilium_binary(${name} SRCS ${A_SRCS} DEPS ${A_DEPS} GTest::gmock GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE CONSILIUM_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  add_test(NAME ${name} COMMAND ${name} --gtest_brief=0 WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES LABELS "${A_LABELS}" TIMEOUT ${A_TIMEOUT})
endfunction()

# consilium_bench(name SRCS a_bench.cc DEPS x): Google Benchmark program, built, not run by the suite.
function(consilium_bench name)
  cmake_parse_arguments(A "" "" "SRCS;DEPS" ${ARGN})
  consilium_binary(${name} SRCS ${A_SRCS} DEPS ${A_DEPS} benchmark::benchmark benchmark::benchmark_main)
endfunction()
