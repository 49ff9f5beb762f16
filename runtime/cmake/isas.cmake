# The kernels of this machine's architecture, as kernels/dispatch/isas.inc lists them: their sources
# in qc_kernels, with the compiler flags of their ISA and no other file with them, since the rest must
# run on any CPU. An ISA whose instruction the compiler does not know is left out.
#
# Gives QC_ISAS, the symbols of the ISAS built; of each QC_NAME_<symbol> and QC_FLAGS_<symbol>; and
# the rows of what is built as kernels/dispatch/built_isas.inc.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(architecture x86)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  set(architecture arm64)
else()
  set(architecture other)
endif()
target_sources(qc_kernels PRIVATE kernels/dispatch/${architecture}.cc)

function(qc_kernel_source file flags)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13
     AND flags MATCHES "avx512")
    # GCC bug 105593: the headers of AVX-512 intrinsics themselves set these off.
    list(APPEND flags -Wno-uninitialized -Wno-maybe-uninitialized)
  endif()
  target_sources(qc_kernels PRIVATE ${file})
  set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "${flags}")
endfunction()

set(list ${CMAKE_CURRENT_SOURCE_DIR}/kernels/dispatch/isas.inc)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${list})
set(built "")

file(STRINGS ${list} rows REGEX "^QC_SIMD\\(")
foreach(row IN LISTS rows)
  if(NOT row MATCHES "^QC_SIMD\\(([a-z0-9]+), ([a-z0-9_]+), [^,]+, [a-z0-9_]+, \"([^\"]*)\"\\)$")
    message(FATAL_ERROR "${list}: can't read ${row}")
  endif()
  set(simd ${CMAKE_MATCH_2})
  separate_arguments(flags UNIX_COMMAND "${CMAKE_MATCH_3}")
  if(CMAKE_MATCH_1 STREQUAL architecture OR CMAKE_MATCH_1 STREQUAL "any")
    list(APPEND simds ${simd})
    set(flags_${simd} "${flags}")
    string(APPEND built "${row}\n")
    foreach(family activation attention convert norm quantize)
      set(file kernels/${family}/${family}_${simd}.cc)
      if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${file})
        qc_kernel_source(${file} "${flags}")
      endif()
    endforeach()
  endif()
endforeach()

file(STRINGS ${list} rows REGEX "^QC_ISA\\(")
foreach(row IN LISTS rows)
  if(NOT row MATCHES "^QC_ISA\\(\"([^\"]+)\", ([a-z0-9_]+), ([a-z0-9_]+), [^,]+, \"([^\"]*)\", \"([^\"]*)\", [a-z0-9_]+, [a-zA-Z]+\\)$")
    message(FATAL_ERROR "${list}: can't read ${row}")
  endif()
  set(name ${CMAKE_MATCH_1})
  set(symbol ${CMAKE_MATCH_2})
  set(base ${CMAKE_MATCH_3})
  set(more ${CMAKE_MATCH_4})
  set(instruction "${CMAKE_MATCH_5}")
  string(TOUPPER QC_HAS_${symbol} has)
  if(NOT base IN_LIST simds)
    continue()
  endif()
  separate_arguments(flags UNIX_COMMAND "${more}")
  list(PREPEND flags ${flags_${base}})
  if(instruction)
    list(JOIN flags " " CMAKE_REQUIRED_FLAGS)
    check_cxx_source_compiles("int main() { __asm__(\"${instruction}\"); }" ${has})
    unset(CMAKE_REQUIRED_FLAGS)
    if(NOT ${has})
      message(STATUS "The kernels ${name} are left out: ${CMAKE_CXX_COMPILER} lacks their instruction")
      continue()
    endif()
  endif()
  list(APPEND QC_ISAS ${symbol})
  set(QC_NAME_${symbol} ${name})
  set(QC_FLAGS_${symbol} "${flags}")
  target_compile_definitions(qc_kernels PUBLIC ${has})
  string(APPEND built "${row}\n")
  qc_kernel_source(kernels/linear/linear_${symbol}.cc "${flags}")
endforeach()

file(CONFIGURE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/generated/kernels/dispatch/built_isas.inc
     CONTENT "#ifndef QC_SIMD
#define QC_SIMD(...)
#endif
#ifndef QC_ISA
#define QC_ISA(...)
#endif
${built}#undef QC_SIMD
#undef QC_ISA
" @ONLY)
target_include_directories(qc_kernels PUBLIC ${CMAKE_CURRENT_BINARY_DIR}/generated)
