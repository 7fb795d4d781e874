# Run by the build: writes SOURCE, a C++ file with the bytes of IMAGES, each followed by a zero, as PTX wants it. COMPILER is CMake's name of it:
# an assembler takes files as they are, Microsoft's compiler wants a list of numbers.
set(declarations "")
set(table "")
set(number 0)
foreach(image IN LISTS IMAGES)
    file(SIZE ${image} size)
    math(EXPR size "${size} + 1")
    if(COMPILER STREQUAL "MSVC")
        file(READ ${image} content HEX)
        string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${content}")
        string(APPEND declarations "alignas(64) static const unsigned char yolact_kernel_image${number}[${size}] = {${bytes}0};\n")
    else()
        string(APPEND declarations
            "__asm__(\".pushsection .rodata\\n.balign 64\\n.hidden yolact_kernel_image${number}\\n.global yolact_kernel_image${number}\\n\"\n"
            "        \"yolact_kernel_image${number}:\\n.incbin \\\"${image}\\\"\\n.byte 0\\n.popsection\\n\");\n"
            "extern \"C\" __attribute__((visibility(\"hidden\"))) const unsigned char yolact_kernel_image${number}[${size}];\n")
    endif()
    string(APPEND table "    {yolact_kernel_image${number}, ${size}},\n")
    math(EXPR number "${number} + 1")
endforeach()
file(WRITE ${SOURCE} "#include \"kernel_images.hpp\"\n\n${declarations}
namespace yolact::detail {

const KernelImage kernel_images[] = {
${table}};
const std::size_t kernel_image_count = ${number};

}  // namespace yolact::detail
")
