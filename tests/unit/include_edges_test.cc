// The architecture as a table: which folder may include which, and where a library or a system
// header may be used. Checked against every #include in include/, src/ and qmp/ and against the
// dependencies in each folder's meson.build, so that an edge cannot be added by accident. Who needs
// a new edge changes the table here, and says why in the commit.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace vmshadow {
namespace {

namespace fs = std::filesystem;

using Folders = std::set<std::string>;

/// Folder → what it may include, besides itself, <vmshadow/…> and libraries.
const std::map<std::string, Folders>& allowed_edges() {
  static const std::map<std::string, Folders> edges = [] {
    std::map<std::string, Folders> table = {
        {"base", {}},
        {"io", {"base"}},
        {"format", {"base"}},
        {"delta", {"base", "format"}},
        {"crypt", {"base", "format"}},
        {"nbd", {"base", "io"}},
        {"qmp", {"base", "io"}},
        {"capture", {"base", "io", "nbd", "qmp"}},
        {"ship", {"base", "io", "format", "delta"}},
        {"store", {"base", "io", "format", "delta", "crypt"}},
        {"replay", {"base", "io", "qmp"}},
        {"predict", {"base"}},
        {"policy", {"base", "predict"}},
    };
    Folders stages;
    for (const auto& [folder, unused] : table) stages.insert(folder);
    table["coord"] = stages;
    stages.insert("coord");
    table["app"] = stages;
    return table;
  }();
  return edges;
}

/// A header (by prefix, or whole) and the only folder that may include it.
const std::map<std::string, std::string> kHeaderOwners = {
    {"liburing", "io"}, {"lz4", "delta"}, {"openssl/", "crypt"}, {"prometheus/", "app"}};
/// The same for a library in `dependencies:` of meson.build.
const std::map<std::string, std::string> kLibraryOwners = {
    {"liburing", "io"}, {"lz4", "delta"}, {"libcrypto", "crypt"}, {"prometheus", "app"}};

/// Bytes in, bytes out: no files, no sockets.
const Folders kPureFolders = {"delta", "format", "predict"};
/// By prefix, or whole.
const std::vector<std::string> kInputOutputHeaders = {
    "arpa/", "fcntl.h",  "filesystem", "fstream", "iostream",   "liburing", "net/",
    "netdb", "netinet/", "poll.h",     "sys/",    "sys/socket", "unistd.h"};

struct SourceFile {
  std::string path;  ///< below the root: "src/store/segment.cc"
  std::string text;
};
using Tree = std::vector<SourceFile>;

struct Include {
  int line{};
  std::string name;
  bool quoted{};
};

std::vector<Include> includes_of(const std::string& text) {
  static const std::regex directive(R"re(^\s*#\s*include\s*([<"])([^>"]+)[>"].*)re");
  std::vector<Include> includes;
  std::istringstream lines(text);
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    std::smatch match;
    if (std::regex_match(line, match, directive)) {
      includes.push_back({number, match[2], match[1] == "\""});
    }
  }
  return includes;
}

std::string first_part(std::string_view path) {
  const auto slash = path.find('/');
  return std::string(slash == std::string_view::npos ? std::string_view{} : path.substr(0, slash));
}

/// "src/store/tier/plan.cc" is of "store", "qmp/session.h" of "qmp", "include/…" of "include".
std::string folder_of(const std::string& path) {
  const std::string top = first_part(path);
  return top == "src" ? first_part(std::string_view(path).substr(4)) : top;
}

bool starts_with_any(const std::string& name, const std::vector<std::string>& prefixes) {
  return std::any_of(prefixes.begin(), prefixes.end(),
                     [&](const std::string& prefix) { return name.starts_with(prefix); });
}

/// Public headers stand alone: what they include must be there for anybody.
bool public_header_may_include(const Include& include) {
  return !include.quoted &&
         (include.name.starts_with("vmshadow/") || include.name == "tl/expected.hpp" ||
          include.name.find_first_of("./") == std::string::npos);  // <vector>: the standard's
}

/// The rule an include breaks, or nothing.
std::string broken_rule(const std::string& folder, const Include& include) {
  if (folder == "include") {
    if (public_header_may_include(include)) return {};
    return "a public header includes only <vmshadow/…>, the standard library and <tl/expected.hpp>";
  }
  for (const auto& [prefix, owner] : kHeaderOwners) {
    if (!include.quoted && include.name.starts_with(prefix) && folder != owner) {
      return "only " + owner + " may use " + prefix;
    }
  }
  if (kPureFolders.contains(folder) && !include.quoted &&
      starts_with_any(include.name, kInputOutputHeaders)) {
    return folder + " does no input or output";
  }
  if (!include.quoted) return {};
  const std::string target = first_part(include.name);
  if (!allowed_edges().contains(target)) {
    return "a quoted include is written \"folder/file.h\" with a folder of this project";
  }
  if (target != folder && !allowed_edges().at(folder).contains(target)) {
    return folder + " may not include " + target;
  }
  return {};
}

/// The identifiers of a meson.build, without comments and strings.
std::set<std::string> meson_identifiers(const std::string& text) {
  static const std::regex ignored(R"(#[^\n]*|'[^'\n]*')");
  static const std::regex identifier(R"([A-Za-z_]\w*)");
  const std::string code = std::regex_replace(text, ignored, " ");
  return {std::sregex_token_iterator(code.begin(), code.end(), identifier),
          std::sregex_token_iterator()};
}

/// Folder → the folders whose NAME_dep its meson.build names, in `dependencies`.
class MesonEdges {
 public:
  void add(const std::string& folder, const std::string& text, const std::string& path,
           std::vector<std::string>& violations) {
    Folders& targets = direct_[folder];
    for (const std::string& identifier : meson_identifiers(text)) {
      if (const auto library = kLibraryOwners.find(identifier);
          library != kLibraryOwners.end() && folder != library->second) {
        violations.push_back(path + ": only " + library->second + " may use " + identifier);
      }
      if (!identifier.ends_with("_dep")) continue;
      const std::string target = identifier.substr(0, identifier.size() - 4);
      if (target == folder || !allowed_edges().contains(target)) continue;
      targets.insert(target);
      if (!allowed_edges().at(folder).contains(target)) {
        violations.push_back(path + ": " + folder + " may not depend on " + target);
      }
    }
  }
  [[nodiscard]] bool knows(const std::string& folder) const { return direct_.contains(folder); }
  /// Straight or through others.
  [[nodiscard]] bool reaches(const std::string& from, const std::string& to) const {
    const auto found = direct_.find(from);
    if (found == direct_.end()) return false;
    return std::any_of(found->second.begin(), found->second.end(),
                       [&](const std::string& next) { return next == to || reaches(next, to); });
  }

 private:
  std::map<std::string, Folders> direct_;
};

/// A sentence for each place that breaks a rule: "path:line: rule (what stands there)".
std::vector<std::string> violations_in(const Tree& tree) {
  std::vector<std::string> violations;
  MesonEdges meson;
  for (const SourceFile& file : tree) {
    const std::string folder = folder_of(file.path);
    if (folder != "include" && !allowed_edges().contains(folder)) {
      violations.push_back(file.path + ": folder '" + folder +
                           "' is not in the table of include_edges_test: add it");
    } else if (file.path.ends_with("/meson.build")) {
      meson.add(folder, file.text, file.path, violations);
    }
  }
  for (const SourceFile& file : tree) {
    const std::string folder = folder_of(file.path);
    if (file.path.ends_with("/meson.build")) continue;
    if (folder != "include" && !allowed_edges().contains(folder)) continue;
    for (const Include& include : includes_of(file.text)) {
      const std::string where = file.path + ":" + std::to_string(include.line) + ": ";
      const std::string rule = broken_rule(folder, include);
      if (!rule.empty()) {
        violations.push_back(where + rule + " (" + include.name + ")");
        continue;
      }
      const std::string target = include.quoted ? first_part(include.name) : folder;
      if (target != folder && meson.knows(folder) && !meson.reaches(folder, target)) {
        violations.push_back(where + "the folder's meson.build does not depend on " + target +
                             "_dep (" + include.name + ")");
      }
    }
  }
  return violations;
}

std::string read_text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

Tree read_tree(const fs::path& root) {
  Tree tree;
  for (const char* top : {"include", "src", "qmp"}) {
    for (const auto& entry : fs::recursive_directory_iterator(root / top)) {
      const fs::path& path = entry.path();
      if (path.extension() != ".h" && path.extension() != ".cc" &&
          path.filename() != "meson.build") {
        continue;
      }
      tree.push_back({path.lexically_relative(root).generic_string(), read_text(path)});
    }
  }
  return tree;
}

std::string joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += "  " + line + "\n";
  return text;
}

TEST(IncludeEdgesTest, TheTreeKeepsToTheTable) {
  const Tree tree = read_tree(VMSHADOW_SOURCE_DIR);
  Folders seen;
  for (const SourceFile& file : tree) {
    if (!includes_of(file.text).empty()) seen.insert(folder_of(file.path));
  }
  for (const char* folder : {"include", "base", "io", "format", "delta", "qmp"}) {
    EXPECT_TRUE(seen.contains(folder)) << "no source of " << folder << " was read";
  }
  const auto violations = violations_in(tree);
  EXPECT_TRUE(violations.empty()) << joined(violations);
}

/// The one violation of a tree of one file.
std::string only_violation(const std::string& path, const std::string& text) {
  const auto violations = violations_in({{path, text}});
  EXPECT_EQ(violations.size(), 1U) << joined(violations);
  return violations.empty() ? std::string{} : violations.front();
}

TEST(IncludeEdgesTest, AllowedEdgesPass) {
  EXPECT_EQ(joined(violations_in({
                {"include/vmshadow/a.h",
                 "#include <vector>\n#include <vmshadow/result.h>\n"
                 "#include <tl/expected.hpp>\n"},
                {"src/delta/a.cc",
                 "#include \"delta/a.h\"\n#include \"base/hash.h\"\n"
                 "#include \"format/record.h\"\n#include <lz4.h>\n"},
                {"src/io/a.cc", "#include <liburing.h>\n#include <unistd.h>\n"},
                {"src/app/a.cc", "#include \"coord/a.h\"\n#include \"qmp/a.h\"\n"},
                {"src/store/tier/a.cc", "#include \"store/tier/a.h\"\n#include \"io/a.h\"\n"},
            })),
            "");
}

TEST(IncludeEdgesTest, AForbiddenEdgeIsNamedWithFileAndLine) {
  EXPECT_EQ(only_violation("src/store/a.cc", "// a\n\n#include \"ship/sender.h\"\n"),
            "src/store/a.cc:3: store may not include ship (ship/sender.h)");
  EXPECT_EQ(only_violation("src/replay/a.cc", " #  include \"format/record.h\" // why\n"),
            "src/replay/a.cc:1: replay may not include format (format/record.h)");
  EXPECT_EQ(only_violation("qmp/a.cc", "#include \"capture/a.h\"\n"),
            "qmp/a.cc:1: qmp may not include capture (capture/a.h)");
  EXPECT_EQ(only_violation("src/coord/a.cc", "#include \"app/a.h\"\n"),
            "src/coord/a.cc:1: coord may not include app (app/a.h)");
  EXPECT_EQ(only_violation("src/base/a.cc", "#include \"io/a.h\"\n"),
            "src/base/a.cc:1: base may not include io (io/a.h)");
}

TEST(IncludeEdgesTest, LibrariesAndSystemHeadersHaveTheirPlace) {
  EXPECT_EQ(only_violation("src/store/a.cc", "#include <liburing.h>\n"),
            "src/store/a.cc:1: only io may use liburing (liburing.h)");
  EXPECT_EQ(only_violation("src/ship/a.cc", "#include <lz4hc.h>\n"),
            "src/ship/a.cc:1: only delta may use lz4 (lz4hc.h)");
  for (const char* header : {"unistd.h", "sys/socket.h", "fcntl.h", "fstream"}) {
    EXPECT_EQ(only_violation("src/format/a.h", std::string("#include <") + header + ">\n"),
              std::string("src/format/a.h:1: format does no input or output (") + header + ")");
  }
}

TEST(IncludeEdgesTest, PublicHeadersStandAlone) {
  for (const char* include : {"\"base/hash.h\"", "<fmt/format.h>", "<unistd.h>", "\"result.h\""}) {
    const auto violation =
        only_violation("include/vmshadow/a.h", std::string("#include ") + include + "\n");
    EXPECT_NE(violation.find("include/vmshadow/a.h:1: a public header"), std::string::npos);
  }
}

TEST(IncludeEdgesTest, IncludesWithoutAFolderAndUnknownFoldersAreFound) {
  EXPECT_NE(only_violation("src/io/a.cc", "#include \"socket.h\"\n").find("\"folder/file.h\""),
            std::string::npos);
  EXPECT_NE(only_violation("src/shadow/a.cc", "").find("'shadow' is not in the table"),
            std::string::npos);
}

TEST(IncludeEdgesTest, MesonDependenciesKeepToTheTableToo) {
  EXPECT_EQ(only_violation("src/replay/meson.build",
                           "l = static_library('replay', dependencies: [base_dep, store_dep])\n"),
            "src/replay/meson.build: replay may not depend on store");
  EXPECT_EQ(only_violation("src/ship/meson.build", "dependencies: [delta_dep, lz4]\n"),
            "src/ship/meson.build: only delta may use lz4");
  EXPECT_EQ(joined(violations_in(
                {{"src/io/meson.build", "# not store_dep\nio_dep = f('ship_dep', [base_dep])\n"}})),
            "");
}

TEST(IncludeEdgesTest, AnIncludeNeedsItsDependencyInMeson) {
  const SourceFile source = {"src/delta/a.cc", "#include \"base/hash.h\"\n"};
  const SourceFile format = {"src/format/meson.build", "dependencies: [base_dep]\n"};
  EXPECT_EQ(joined(violations_in({source, {"src/delta/meson.build", "[base_dep]\n"}})), "");
  EXPECT_EQ(joined(violations_in({source, format, {"src/delta/meson.build", "[format_dep]\n"}})),
            "");
  EXPECT_EQ(joined(violations_in({source, {"src/delta/meson.build", "[]\n"}})),
            "  src/delta/a.cc:1: the folder's meson.build does not depend on base_dep "
            "(base/hash.h)\n");
}

}  // namespace
}  // namespace vmshadow
