// Compiles by tests/cuda/emulate/compile.py, once for each source: the results stay in BEIT2_EMULATE_BUILD.
#include "nvrtc_stub.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <dirent.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

// Set by the build: the folder of compile.py, and where compiled files go.
#ifndef EMULATE_FOLDER
#error "EMULATE_FOLDER is not defined"
#endif

namespace {
uint64_t hash(uint64_t so_far, const std::string &text) { // FNV-1a
    for (unsigned char c : text) so_far = (so_far ^ c) * 0x100000001b3ull;
    return so_far;
}

// Changes when the emulator changes.
std::string generation(const std::string &folder) {
    long newest = 0;
    for (const std::string &at : {folder, folder + "/include"}) {
        DIR *listing = opendir(at.c_str());
        if (!listing) continue;
        while (const dirent *entry = readdir(listing)) {
            struct stat info;
            std::string name = entry->d_name;
            if (name[0] != '.' && name != "__pycache__" && !stat((at + "/" + name).c_str(), &info) && S_ISREG(info.st_mode) && info.st_mtime > newest)
                newest = info.st_mtime;
        }
        closedir(listing);
    }
    return std::to_string(newest);
}

std::string quoted(const std::string &text) {
    std::string out = "'";
    for (char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return out + "'";
}
} // namespace

bool emulate(const std::string &source, const std::string &name, int options, const char *const *option, std::string *code, std::string *log) {
    // Candidates of CubeCL's tuner: it goes on with those that compile. Own kernels have the word and another half for the CPU.
    for (const char *word : {"asm volatile", "#include <cooperative_groups", "#include <cuda/"})
        if (source.find(word) != std::string::npos && source.find("BEIT2_EMULATE") == std::string::npos) {
            *log = std::string("no emulator for ") + word;
            return false;
        }
    static const std::string folder = getenv("BEIT2_EMULATE") ? getenv("BEIT2_EMULATE") : EMULATE_FOLDER;
    static const std::string build = getenv("BEIT2_EMULATE_BUILD") ? getenv("BEIT2_EMULATE_BUILD") : EMULATE_BUILD;
    static const std::string version = generation(folder);
    std::string define;
    for (int i = 0; i < options; i++)
        if (!strncmp(option[i], "-D", 2)) define += " " + quoted(option[i]);

    char file[64];
    uint64_t sum = hash(hash(hash(0xcbf29ce484222325ull, source), define), version);
    snprintf(file, sizeof file, "/kernel-%016lx-%zu", (unsigned long)sum, source.size());
    std::string base = build + file, library = base + ".so";
    *code = "//emulated " + library + "\n";
    if (!access(library.c_str(), R_OK)) return true;

    mkdir(build.c_str(), 0755);
    std::string text = base + "." + std::to_string(getpid()) + "." + std::to_string(sum % 1000) + ".cu";
    FILE *out = fopen(text.c_str(), "w");
    if (!out) {
        *log = "cannot write " + text;
        return false;
    }
    fwrite(source.data(), 1, source.size(), out);
    fclose(out);
    std::string command = "BEIT2_EMULATE_BUILD=" + quoted(build) + " python3 " + quoted(folder + "/compile.py") + " " + quoted(text) + " -o " +
        quoted(library) + " --name " + quoted(name) + " --include " + quoted(folder + "/include") + define + " 2>&1";
    FILE *pipe = popen(command.c_str(), "r");
    char piece[4096];
    for (size_t n; pipe && (n = fread(piece, 1, sizeof piece, pipe)) > 0;) log->append(piece, n);
    int status = pipe ? pclose(pipe) : -1;
    unlink(text.c_str());
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}
