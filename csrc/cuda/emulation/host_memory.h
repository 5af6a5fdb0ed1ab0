// Memory that no GPU has: this library's code and variables, and the stack of the thread that launches.
#pragma once

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>

#include "cuda/emulation/emulation.h"

namespace higgs_native::emulation::races {

namespace {

// Where this library's code and variables are.
struct Library {
  std::string path;
  uintptr_t begin = 0, end = 0, variables = 0, variable_bytes = 0;

  Library() {
    Dl_info info = {};
    dladdr(&registers, &info);
    path = info.dli_fname ? info.dli_fname : "";
    begin = reinterpret_cast<uintptr_t>(info.dli_fbase);
    dl_iterate_phdr(
        [](dl_phdr_info* object, size_t, void* data) {
          auto* self = static_cast<Library*>(data);
          if (object->dlpi_addr != self->begin) return 0;
          for (int i = 0; i < object->dlpi_phnum; ++i) {
            const auto& segment = object->dlpi_phdr[i];
            if (segment.p_type != PT_LOAD) continue;
            self->end = std::max<uintptr_t>(self->end, object->dlpi_addr + segment.p_vaddr + segment.p_memsz);
            if (!(segment.p_flags & PF_W)) continue;
            self->variables = object->dlpi_addr + segment.p_vaddr;
            self->variable_bytes = segment.p_memsz;
          }
          return 1;
        },
        this);
  }

  // The function and line of a return address, with those it is inlined into, unless the library has been stripped.
  std::string describe(uint32_t code) const {
    char command[64];
    std::snprintf(command, sizeof command, "' 0x%x 2>/dev/null", code - 1);
    std::string text;
    if (FILE* lines = popen(("addr2line -Cfips -e '" + path + command).c_str(), "r")) {
      char part[512];
      while (std::fgets(part, sizeof part, lines)) text += part;
      pclose(lines);
    }
    for (const std::string common : {"higgs_native::cuda::", "higgs_native::", "(anonymous namespace)::"}) {
      for (size_t at; (at = text.find(common)) != std::string::npos;) text.erase(at, common.size());
    }
    while (!text.empty() && text.back() == '\n') text.pop_back();
    if (!text.empty() && text.find("?? ??") == std::string::npos) return text;
    std::snprintf(command, sizeof command, "code at 0x%x of ", code);
    return command + path;
  }
};

const Library library;

// The stack of the thread that calls this.
struct Stack {
  uintptr_t begin = 0;
  size_t bytes = 0;

  Stack() {
    pthread_attr_t attributes;
    if (pthread_getattr_np(pthread_self(), &attributes) != 0) return;
    void* lowest = nullptr;
    pthread_attr_getstack(&attributes, &lowest, &bytes);
    begin = reinterpret_cast<uintptr_t>(lowest);
    pthread_attr_destroy(&attributes);
  }
};
thread_local const Stack stack_of_thread;
Stack host_stack;  // of the thread that launches

// A kernel's arguments and constants.
bool is_of_host(uintptr_t at) {
  return at - host_stack.begin < host_stack.bytes || at - library.begin < library.end - library.begin;
}

}  // namespace

}  // namespace higgs_native::emulation::races
