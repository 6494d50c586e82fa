// Parts of the stand-in for libnvrtc.so.
#pragma once

#include <nvrtc.h>

#include <string>

#define STUB_EXPORT extern "C" __attribute__((visibility("default")))

// A text like PTX with the entries of a source, their parameters and bounds, and no instructions.
std::string text_without_code(const std::string &source);

// Compiles for the CPU. `code` becomes the note that the driver's stand-in opens; false, with the reason in `log`, if g++
// refuses the source.
bool emulate(const std::string &source, const std::string &name, int options, const char *const *option, std::string *code, std::string *log);
