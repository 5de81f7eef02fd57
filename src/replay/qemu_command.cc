#include "replay/qemu_command.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <set>
#include <string_view>

namespace vmshadow::replay {
namespace {

/// QEMU's options that take no value (qemu-options.hx, 5.0 to 10); every other one takes the next
/// argument whatever it looks like.
constexpr std::array<std::string_view, 41> kFlags{"S",
                                                  "alt-grab",
                                                  "async-teardown",
                                                  "ctrl-grab",
                                                  "curses",
                                                  "daemonize",
                                                  "enable-fips",
                                                  "enable-kvm",
                                                  "enable-sync-profile",
                                                  "full-screen",
                                                  "h",
                                                  "help",
                                                  "mem-prealloc",
                                                  "no-acpi",
                                                  "no-fd-bootchk",
                                                  "no-frame",
                                                  "no-hpet",
                                                  "no-kvm",
                                                  "no-kvm-irqchip",
                                                  "no-kvm-pit",
                                                  "no-quit",
                                                  "no-reboot",
                                                  "no-shutdown",
                                                  "no-user-config",
                                                  "nodefaults",
                                                  "nodefconfig",
                                                  "nographic",
                                                  "old-param",
                                                  "one-insn-per-tb",
                                                  "only-migratable",
                                                  "portrait",
                                                  "preconfig",
                                                  "s",
                                                  "semihosting",
                                                  "singlestep",
                                                  "snapshot",
                                                  "usb",
                                                  "version",
                                                  "win2k-hack",
                                                  "xen-attach",
                                                  "xen-domid-restrict"};

constexpr std::array<std::string_view, 10> kDropped{"daemonize", "pidfile",   "incoming", "S",
                                                    "preconfig", "loadvm",    "qmp",      "monitor",
                                                    "mon",       "qmp-pretty"};

template <std::size_t count>
bool contains(const std::array<std::string_view, count>& set, std::string_view word) {
  return std::find(set.begin(), set.end(), word) != set.end();
}

/// One option with its value, or a lone word (a disk image).
struct Item {
  std::string option;  ///< without its dashes; empty for a lone word
  std::vector<std::string> words;
  bool dropped = false;
  [[nodiscard]] std::string_view value() const {
    return words.size() == 2 || option.empty() ? std::string_view(words.back())
                                               : std::string_view();
  }
};

std::vector<Item> split_into_items(const std::vector<std::string>& argv) {
  std::vector<Item> items;
  for (std::size_t i = 1; i < argv.size(); ++i) {
    Item item;
    item.words.push_back(argv[i]);
    if (argv[i].size() > 1 && argv[i][0] == '-') {
      item.option = argv[i].substr(argv[i][1] == '-' ? 2 : 1);
      if (!contains(kFlags, item.option) && i + 1 < argv.size()) item.words.push_back(argv[++i]);
    }
    items.push_back(std::move(item));
  }
  return items;
}

/// The fields of "a,b=c,d=e,,f": split at single commas, doubled ones kept as they are.
std::vector<std::string_view> fields_of(std::string_view value) {
  std::vector<std::string_view> fields;
  std::size_t start = 0;
  for (std::size_t i = 0; i <= value.size(); ++i) {
    if (i < value.size() && value[i] != ',') continue;
    if (i + 1 < value.size() && value[i + 1] == ',') {
      ++i;
      continue;
    }
    fields.push_back(value.substr(start, i - start));
    start = i + 1;
  }
  return fields;
}

/// The value of `key=` in a comma list; empty if there is none.
std::string_view field_of(std::string_view value, std::string_view key) {
  for (const std::string_view field : fields_of(value)) {
    if (field.size() > key.size() && field.starts_with(key) && field[key.size()] == '=') {
      return field.substr(key.size() + 1);
    }
  }
  return {};
}

/// The chardev a -mon uses: chardev=ID, or the first field by itself.
std::string_view monitor_chardev(std::string_view value) {
  if (const std::string_view id = field_of(value, "chardev"); !id.empty()) return id;
  const auto fields = fields_of(value);
  return fields.front().find('=') == std::string_view::npos ? fields.front() : std::string_view();
}

/// Whether `id` stands in `text` as a word of its own.
bool mentions(std::string_view text, std::string_view id) {
  const auto is_id_char = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '.' || c == '_';
  };
  for (std::size_t at = text.find(id); at != std::string_view::npos; at = text.find(id, at + 1)) {
    const std::size_t end = at + id.size();
    if ((at == 0 || !is_id_char(text[at - 1])) && (end == text.size() || !is_id_char(text[end]))) {
      return true;
    }
  }
  return false;
}

/// Drops what must not be started again. A chardev that anything kept so much as mentions stays.
void drop_monitors_and_start_up(std::vector<Item>& items) {
  std::set<std::string, std::less<>> monitor_chardevs;
  for (Item& item : items) {
    item.dropped = contains(kDropped, item.option);
    if (item.option == "mon" && item.words.size() == 2) {
      if (const auto id = monitor_chardev(item.value()); !id.empty()) {
        monitor_chardevs.emplace(id);
      }
    }
  }
  for (Item& item : items) {
    if (item.option != "chardev" || item.words.size() != 2) continue;
    const std::string_view id = field_of(item.value(), "id");
    if (id.empty() || !monitor_chardevs.contains(id)) continue;
    const bool used_elsewhere = std::any_of(items.begin(), items.end(), [&](const Item& other) {
      return &other != &item && !other.dropped && mentions(other.value(), id);
    });
    item.dropped = !used_elsewhere;
  }
}

bool replace_all(std::string& text, const Replacement& replacement) {
  bool found = false;
  for (std::size_t at = text.find(replacement.from); at != std::string::npos;
       at = text.find(replacement.from, at + replacement.to.size())) {
    text.replace(at, replacement.from.size(), replacement.to);
    found = true;
  }
  return found;
}

std::string with_doubled_commas(std::string_view text);

/// A file's name as `argument` would have it: JSON, or an option's value.
std::string spelled_for(const std::string& argument, const std::string& path) {
  if (!argument.starts_with('{')) return with_doubled_commas(path);
  const std::string quoted = nlohmann::json(path).dump();
  return quoted.substr(1, quoted.size() - 2);
}

/// A file's name stands where an option's value or a text of JSON does, and not within another. All
/// in one pass: what takes one's place may be called like another.
void replace_file_names(std::string& text, const std::vector<Replacement>& images,
                        std::vector<bool>& found) {
  constexpr std::string_view kBefore = "=\"";
  constexpr std::string_view kBehind = ",\"";
  for (std::size_t at = 0; at < text.size(); ++at) {
    if (at != 0 && kBefore.find(text[at - 1]) == std::string_view::npos) continue;
    for (std::size_t i = 0; i < images.size(); ++i) {
      const std::string from = spelled_for(text, images[i].from);
      const std::size_t end = at + from.size();
      if (from.empty() || text.compare(at, from.size(), from) != 0) continue;
      if (end != text.size() && kBehind.find(text[end]) == std::string_view::npos) continue;
      const std::string to = spelled_for(text, images[i].to);
      text.replace(at, from.size(), to);
      at += to.size();
      found[i] = true;
      break;
    }
  }
}

Status apply_images(std::vector<std::string>& arguments, const std::vector<Replacement>& images) {
  std::vector<bool> found(images.size());
  for (std::string& argument : arguments) replace_file_names(argument, images, found);
  const auto missed = std::find(found.begin(), found.end(), false);
  if (missed == found.end()) return {};
  return fail(
      Errc::invalid_argument,
      fmt::format("the recorded command line does not name the image '{}' of a disk: look at "
                  "it with --dry-run, and use --old-disks with --set",
                  images[static_cast<std::size_t>(missed - found.begin())].from));
}

Status apply_replacements(std::vector<std::string>& arguments,
                          const std::vector<Replacement>& replacements) {
  for (const Replacement& replacement : replacements) {
    if (replacement.from.empty()) {
      return fail(Errc::invalid_argument, "a replacement must name the text to replace");
    }
    bool found = false;
    for (std::string& argument : arguments) found |= replace_all(argument, replacement);
    if (!found) {
      return fail(Errc::invalid_argument,
                  fmt::format("'{}' occurs in no argument of the recorded command line: look at it "
                              "with --dry-run",
                              replacement.from));
    }
  }
  return {};
}

/// An inherited descriptor ("fd=27") means something in the original process alone.
Status refuse_inherited_descriptors(const std::vector<std::string>& arguments) {
  for (const std::string& argument : arguments) {
    for (const std::string_view key : {"fd", "fds", "vhostfd", "vhostfds"}) {
      const std::string_view value = field_of(argument, key);
      if (!value.empty() && value[0] >= '0' && value[0] <= '9') {
        return fail(Errc::invalid_argument,
                    fmt::format("'{}' uses a file descriptor its manager passed: replace it, as in "
                                "--set '{}\\={}=…', or start QEMU yourself and use --qmp",
                                argument, key, value));
      }
    }
  }
  return {};
}

/// Whether an -accel or -machine asks for TCG in so many words.
bool asks_for_tcg(const std::vector<std::string>& arguments) {
  for (std::size_t i = 0; i + 1 < arguments.size(); ++i) {
    const std::string_view option = arguments[i];
    const std::string_view value = arguments[i + 1];
    if ((option == "-accel" || option == "--accel") && fields_of(value).front() == "tcg") {
      return true;
    }
    if ((option == "-machine" || option == "-M" || option == "--machine") &&
        field_of(value, "accel").starts_with("tcg")) {
      return true;
    }
  }
  return false;
}

/// QEMU reads a doubled comma as one that does not end the field.
std::string with_doubled_commas(std::string_view text) {
  std::string out;
  for (const char c : text) {
    out += c;
    if (c == ',') out += c;
  }
  return out;
}

/// What the kernel appends to /proc/PID/exe when the file was replaced by an upgrade.
std::string without_deleted_mark(std::string path) {
  constexpr std::string_view kMark = " (deleted)";
  if (path.ends_with(kMark)) path.resize(path.size() - kMark.size());
  return path;
}

std::string quoted(const std::string& word) {
  const bool plain = !word.empty() && std::all_of(word.begin(), word.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("-_./=,:+@%").find(c) != std::string_view::npos;
  });
  if (plain) return word;
  std::string out = "'";
  for (const char c : word) {
    if (c == '\'') {
      out += "'\\''";
    } else {
      out += c;
    }
  }
  return out + "'";
}

}  // namespace

Result<Replacement> parse_replacement(const std::string& text) {
  Replacement replacement;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 1 < text.size() && text[i + 1] == '=') {
      replacement.from += text[++i];
    } else if (text[i] == '=') {
      if (replacement.from.empty()) break;
      replacement.to = text.substr(i + 1);
      return replacement;
    } else {
      replacement.from += text[i];
    }
  }
  return fail(Errc::invalid_argument, fmt::format("'{}' is not of the form OLD=NEW", text));
}

Result<QemuCommand> command_for_restore(const MachineRecord& record, const CommandChanges& changes,
                                        const std::string& qmp_path) {
  if (record.argv.empty()) {
    return fail(Errc::unsupported,
                "no command line was recorded with this VM: start QEMU yourself with -incoming "
                "defer and name its monitor with --qmp");
  }
  std::vector<Item> items = split_into_items(record.argv);
  drop_monitors_and_start_up(items);
  std::vector<std::string> arguments;
  for (Item& item : items) {
    if (item.dropped) continue;
    for (std::string& word : item.words) arguments.push_back(std::move(word));
  }
  VMSHADOW_TRY(apply_images(arguments, changes.images));
  VMSHADOW_TRY(apply_replacements(arguments, changes.replacements));
  VMSHADOW_TRY(refuse_inherited_descriptors(arguments));

  QemuCommand command;
  command.cwd = changes.cwd.empty() ? record.cwd : changes.cwd;
  command.environment = changes.environment;
  command.needs_kvm = record.accelerator == "kvm" && !asks_for_tcg(arguments);
  std::string binary = changes.qemu_binary;
  if (binary.empty()) binary = without_deleted_mark(record.qemu_binary);
  if (binary.empty()) binary = record.argv.front();
  command.argv.push_back(std::move(binary));
  command.argv.insert(command.argv.end(), arguments.begin(), arguments.end());
  command.argv.insert(command.argv.end(), changes.extra_args.begin(), changes.extra_args.end());
  command.argv.insert(
      command.argv.end(),
      {"-qmp", fmt::format("unix:{},server=on,wait=off", with_doubled_commas(qmp_path)),
       "-incoming", "defer"});
  return command;
}

std::string shell_text(const QemuCommand& command) {
  std::string text;
  if (!command.cwd.empty()) text += fmt::format("cd {} && ", quoted(command.cwd));
  if (!command.environment.empty()) {
    text += "env ";
    for (const std::string& setting : command.environment) text += quoted(setting) + " ";
  }
  for (std::size_t i = 0; i < command.argv.size(); ++i) {
    if (i != 0) text += ' ';
    text += quoted(command.argv[i]);
  }
  return text;
}

}  // namespace vmshadow::replay
