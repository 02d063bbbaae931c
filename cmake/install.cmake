# For C programs: find_package(fdstash) gives fdstash::fdstash, fdstash::fdstash_load and
# fdstash::fdstash_nbd.

include(CMakePackageConfigHelpers)
set(config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/fdstash)

install(FILES csrc/include/fdstash.h csrc/include/fdstash_api.h
              csrc/include/fdstash_queue_api.h csrc/include/fdstash_swap_api.h
              csrc/include/fdstash_load.h csrc/include/fdstash_load_api.h
              csrc/include/fdstash_nbd.h csrc/include/fdstash_nbd_api.h
        DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS fdstash fdstash_load fdstash_nbd EXPORT fdstash ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT fdstash NAMESPACE fdstash:: FILE fdstash-targets.cmake DESTINATION ${config_dir})

configure_package_config_file(cmake/fdstash-config.cmake.in
  ${CMAKE_CURRENT_BINARY_DIR}/fdstash-config.cmake INSTALL_DESTINATION ${config_dir})
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/fdstash-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/fdstash-config.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/fdstash-config-version.cmake
        DESTINATION ${config_dir})
