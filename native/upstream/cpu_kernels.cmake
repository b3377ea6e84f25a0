# CPU kernels beside the baseline (x86-64-v2), chosen at run time by what the machine has. Which, says upstream.py.
if (GGML_BACKEND_DL AND GGML_SYSTEM_ARCH STREQUAL "x86")
    foreach (variant ${SAFEX_CPU_VARIANTS})
        ggml_add_cpu_backend_variant(${variant} ${SAFEX_CPU_${variant}})
    endforeach()
endif()
