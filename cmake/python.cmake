# The extension modules fdstash._native and fdstash._calls, built by scikit-build-core
# only: plain CMake 3.25 knows neither Development.SABIModule nor USE_SABI.

find_package(Python REQUIRED COMPONENTS Interpreter Development.Module ${SKBUILD_SABI_COMPONENT})

set(native_c ${CMAKE_CURRENT_BINARY_DIR}/_native.c)
set(native_api ${CMAKE_CURRENT_BINARY_DIR}/native_api.h)
set(native_preamble ${PROJECT_SOURCE_DIR}/csrc/ffi_preamble.c)

# cffi reads one text: the declarations of all three libraries.
set(native_api_text "")
foreach(api IN ITEMS fdstash_api.h fdstash_queue_api.h fdstash_swap_api.h fdstash_load_api.h
                      fdstash_nbd_api.h)
  set(api ${PROJECT_SOURCE_DIR}/csrc/include/${api})
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${api})
  file(READ ${api} text)
  string(APPEND native_api_text "${text}")
endforeach()
file(CONFIGURE OUTPUT ${native_api} CONTENT "${native_api_text}" @ONLY)

add_custom_command(
  OUTPUT ${native_c}
  COMMAND Python::Interpreter -m cffi.gen_src read-sources
          fdstash._native ${native_api} ${native_preamble} ${native_c}
  DEPENDS ${native_api} ${native_preamble}
  VERBATIM)

# A free-threaded Python has no stable ABI, and then there is no version.
if(SKBUILD_SABI_VERSION)
  set(stable_abi USE_SABI ${SKBUILD_SABI_VERSION})
endif()
python_add_library(_native MODULE ${native_c} WITH_SOABI ${stable_abi})
target_link_libraries(_native PRIVATE fdstash_load fdstash_nbd)

# It has the declarations of the core and no copy of it, which must exist once in a process.
set(calls ${PROJECT_SOURCE_DIR}/python/native)
python_add_library(_calls MODULE ${calls}/arguments.c ${calls}/calls.c ${calls}/pinned.c
  WITH_SOABI ${stable_abi})
target_include_directories(_calls PRIVATE ${PROJECT_SOURCE_DIR}/csrc/include)
target_link_libraries(_calls PRIVATE fdstash_warnings)

install(TARGETS _native _calls LIBRARY DESTINATION fdstash COMPONENT python)
