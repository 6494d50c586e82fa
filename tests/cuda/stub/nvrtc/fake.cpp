// Finds the kernels of a source, their bounds and the sizes of their parameters, as far as plain declarations tell. A size
// that is not found is written as 0: the driver's stand-in does not check that parameter.
#include "nvrtc_stub.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <regex>
#include <vector>

namespace {
struct Layout {
    size_t size, align;
};

std::string without_comments(const std::string &text) {
    std::string out;
    for (size_t i = 0; i < text.size();) {
        if (!text.compare(i, 2, "//"))
            i = std::min(text.find('\n', i), text.size());
        else if (!text.compare(i, 2, "/*"))
            i = std::min(text.find("*/", i), text.size() - 2) + 2;
        else
            out += text[i++];
    }
    return out;
}

bool is_word(char c) { return isalnum(static_cast<unsigned char>(c)) || c == '_'; }

std::vector<std::string> words(const std::string &text) {
    std::vector<std::string> out;
    for (size_t i = 0; i < text.size();) {
        if (!is_word(text[i])) {
            i++;
            continue;
        }
        size_t from = i;
        while (i < text.size() && is_word(text[i])) i++;
        out.push_back(text.substr(from, i - from));
    }
    return out;
}

// End of a bracket that opens at `at`.
size_t closing(const std::string &text, size_t at) {
    int depth = 0;
    for (size_t i = at; i < text.size(); i++) {
        if (strchr("({[", text[i])) depth++;
        if (strchr(")}]", text[i]) && --depth == 0) return i;
    }
    return text.size();
}

class Types {
  public:
    explicit Types(const std::string &source) : source(source) {}

    // Of a declaration such as "const uint32 *__restrict__ x" or "info_st info"; {0, 1} if it is not understood.
    Layout of(const std::string &declaration) {
        if (declaration.find_first_of("*&") != std::string::npos) return {8, 8};
        Layout found = {0, 1};
        for (const std::string &word : words(declaration)) {
            Layout l = named(word);
            if (word == "long" || l.size == 8) return {8, 8}; // also "unsigned long"
            if (l.size && (!found.size || word != "unsigned")) found = l;
        }
        return found;
    }

  private:
    const std::string &source;
    std::map<std::string, Layout> known;

    Layout named(const std::string &word) {
        static const std::map<std::string, size_t> SCALARS = {{"bool", 1}, {"char", 1}, {"int8", 1}, {"uint8", 1}, {"int8_t", 1}, {"uint8_t", 1},
            {"short", 2}, {"int16", 2}, {"uint16", 2}, {"__half", 2}, {"__nv_bfloat16", 2}, {"bf16", 2}, {"int", 4}, {"unsigned", 4}, {"float", 4},
            {"int32", 4}, {"uint32", 4}, {"uint", 4}, {"int32_t", 4}, {"uint32_t", 4}, {"double", 8}, {"int64", 8}, {"uint64", 8}, {"int64_t", 8},
            {"uint64_t", 8}, {"size_t", 8}};
        auto scalar = SCALARS.find(word);
        if (scalar != SCALARS.end()) return {scalar->second, scalar->second};
        if (word == "CUtensorMap") return {128, 64};
        auto before = known.find(word);
        if (before != known.end()) return before->second;
        known[word] = {0, 1}; // so that a struct that names itself ends
        return known[word] = structure(word);
    }

    Layout structure(const std::string &name) {
        std::smatch match;
        if (!std::regex_search(source, match, std::regex("struct\\s+(?:__align__\\s*\\([^)]*\\)\\s*|alignas\\s*\\([^)]*\\)\\s*)?" + name + "\\s*\\{")))
            return {0, 1};
        size_t open = size_t(match.position() + match.length()) - 1;
        std::string body = source.substr(open + 1, closing(source, open) - open - 1);
        size_t size = 0, align = 1;
        for (size_t from = 0; from < body.size();) {
            size_t end = std::min(body.find(';', from), body.size());
            std::string field = body.substr(from, end - from);
            from = end + 1;
            if (words(field).empty()) continue;
            if (field.find('(') != std::string::npos) return {0, 1}; // functions inside: too much for this
            size_t many = 1;
            std::string declared = field;
            for (size_t bracket; (bracket = declared.rfind('[')) != std::string::npos; declared.resize(bracket)) many *= constant(declared.substr(bracket + 1));
            Layout one = of(declared);
            if (!one.size || !many) return {0, 1};
            size_t names = 1 + size_t(std::count(declared.begin(), declared.end(), ','));
            size = (size + one.align - 1) / one.align * one.align + one.size * many * names;
            align = std::max(align, one.align);
        }
        return {(size + align - 1) / align * align, align};
    }

    // A number, or the name of a constant that is one; 0 otherwise.
    size_t constant(const std::string &text) {
        if (isdigit(static_cast<unsigned char>(text[0]))) return size_t(atol(text.c_str()));
        std::vector<std::string> name = words(text);
        std::smatch match;
        if (name.size() == 1 && std::regex_search(source, match, std::regex("(?:constexpr|const|#define)[^;\\n]*\\b" + name[0] + "\\s*=?\\s*(\\d+)")))
            return size_t(atol(match[1].str().c_str()));
        return 0;
    }
};
} // namespace

std::string text_without_code(const std::string &with_comments) {
    std::string source = without_comments(with_comments), out = "// no code: kernels and parameters only\n";
    Types types(source);
    for (size_t at = 0; (at = source.find("__global__", at)) != std::string::npos;) {
        at += strlen("__global__");
        // Up to the parameters: the name is the word before the bracket that is not that of an attribute.
        std::string name, bound = "1024";
        size_t open = at;
        for (;;) {
            open = source.find('(', open);
            if (open == std::string::npos) return out;
            std::vector<std::string> before = words(source.substr(at, open - at));
            name = before.empty() ? "" : before.back();
            if (name != "__launch_bounds__" && name != "__cluster_dims__") break;
            size_t close = closing(source, open);
            if (name == "__launch_bounds__") bound = source.substr(open + 1, close - open - 1);
            at = open = close + 1;
        }
        size_t close = closing(source, open);
        at = close;
        std::string parameters;
        int position = 0;
        for (size_t from = open + 1; from < close;) {
            size_t end = from;
            int depth = 0;
            for (; end < close && (source[end] != ',' || depth); end++) depth += strchr("<(", source[end]) ? 1 : strchr(">)", source[end]) ? -1 : 0;
            std::string declaration = source.substr(from, end - from);
            from = end + 1;
            if (words(declaration).empty()) continue;
            if (position++) parameters += ",\n";
            std::string number = "p" + std::to_string(position - 1);
            if (declaration.find('*') != std::string::npos)
                parameters += ".param .u64 .ptr " + number;
            else
                parameters += ".param .align 8 .b8 " + number + "[" + std::to_string(types.of(declaration).size) + "]";
        }
        out += ".visible .entry " + name + "(\n" + parameters + "\n)\n";
        if (isdigit(static_cast<unsigned char>(bound[0]))) out += ".maxntid " + std::to_string(atoi(bound.c_str())) + ", 1, 1\n";
        out += "{\nret;\n}\n";
    }
    return out;
}
