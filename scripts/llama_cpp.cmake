# What of llama.cpp is built. CMake reads this file behind llama.cpp's own `project()` (scripts/setup and
# scripts/build_wheel hand it in as CMAKE_PROJECT_llama.cpp_INCLUDE), before its options are looked at.

# The binding demands llama.cpp's common library, and with it an HTTP client. llmrun uses neither: its own loop, hub
# client and grammars stand in for them. 57 of 144 files, and 37 % of the compiler's time.
set(LLAMA_BUILD_COMMON OFF CACHE BOOL "llama: build common utils library" FORCE)
