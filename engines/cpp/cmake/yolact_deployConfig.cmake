# Of the Python package, which brings the sources: the library is built with whatever asks for it. `yolact-deploy sdk --cmakedir` names this
# folder. CMakeLists.txt tells the variables.
if(NOT TARGET yolact_deploy::yolact_deploy)
    add_subdirectory(${CMAKE_CURRENT_LIST_DIR}/.. ${CMAKE_CURRENT_BINARY_DIR}/yolact_deploy EXCLUDE_FROM_ALL)
endif()
foreach(component IN ITEMS shared static)
    set(yolact_deploy_${component}_FOUND TRUE)
endforeach()
