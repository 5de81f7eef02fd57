// An NBD client's half of a conversation, written down beforehand, and the server's answers taken
// apart.
#pragma once

#include <algorithm>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nbd/byte_stream.h"
#include "nbd/protocol.h"

namespace vmshadow::test {

/// What a client says, in order.
class NbdScript {
 public:
  explicit NbdScript(std::uint32_t flags = nbd::kFixedNewstyle | nbd::kNoZeroes) {
    add(be32(flags));
  }

  NbdScript& option(nbd::Option option, std::string_view data = {}) {
    nbd::OptionHead head;
    head.option = static_cast<std::uint32_t>(option);
    head.bytes = static_cast<std::uint32_t>(data.size());
    add(head);
    return text(data);
  }
  /// go or info, asking for these kinds of information.
  NbdScript& choose(nbd::Option option, std::string_view name,
                    const std::vector<std::uint16_t>& infos = {}) {
    std::string data = number(be32(static_cast<std::uint32_t>(name.size()))) + std::string(name) +
                       number(be16(static_cast<std::uint16_t>(infos.size())));
    for (const std::uint16_t info : infos) data += number(be16(info));
    return this->option(option, data);
  }
  NbdScript& contexts(nbd::Option option, std::string_view name,
                      const std::vector<std::string>& queries) {
    std::string data = number(be32(static_cast<std::uint32_t>(name.size()))) + std::string(name) +
                       number(be32(static_cast<std::uint32_t>(queries.size())));
    for (const std::string& query : queries) {
      data += number(be32(static_cast<std::uint32_t>(query.size()))) + query;
    }
    return this->option(option, data);
  }
  NbdScript& request(nbd::Command command, std::uint64_t offset, std::uint32_t bytes,
                     std::uint16_t flags = 0) {
    nbd::Request request;
    request.flags = flags;
    request.command = static_cast<std::uint16_t>(command);
    request.cookie = ++cookie_;
    request.offset = offset;
    request.bytes = bytes;
    add(request);
    return *this;
  }
  NbdScript& write(std::uint64_t offset, std::string_view data, std::uint16_t flags = 0) {
    request(nbd::Command::write, offset, static_cast<std::uint32_t>(data.size()), flags);
    return text(data);
  }
  NbdScript& disconnect() { return request(nbd::Command::disconnect, 0, 0); }
  NbdScript& text(std::string_view data) {
    const auto bytes = std::as_bytes(std::span(data));
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    return *this;
  }
  template <class Struct>
  NbdScript& add(const Struct& value) {
    return text(number(value));
  }

  [[nodiscard]] const std::vector<std::byte>& bytes() const { return bytes_; }

  /// The bytes of an integer or a structure, as text.
  template <class Struct>
  [[nodiscard]] static std::string number(const Struct& value) {
    return {reinterpret_cast<const char*>(&value), sizeof value};
  }

 private:
  std::vector<std::byte> bytes_;
  std::uint64_t cookie_ = 0;
};

/// Reads from a script and keeps what is answered.
class ScriptedStream final : public nbd::ByteStream {
 public:
  explicit ScriptedStream(ByteSpan script) : script_(script) {}

  [[nodiscard]] Status read(MutableByteSpan into) override {
    if (into.size() > script_.size()) return fail(Errc::closed, "the script ends");
    std::copy_n(script_.begin(), into.size(), into.begin());
    script_ = script_.subspan(into.size());
    return {};
  }
  [[nodiscard]] Status write(ByteSpan bytes) override {
    answers_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    return {};
  }

  [[nodiscard]] const std::string& answers() const { return answers_; }
  /// The next answer's bytes, as a structure or as text; the caller knows what must follow.
  template <class Struct>
  [[nodiscard]] Struct next() {
    Struct value;
    const std::string text = next(sizeof value);
    if (text.size() == sizeof value) std::memcpy(&value, text.data(), sizeof value);
    return value;
  }
  [[nodiscard]] std::string next(std::size_t bytes) {
    std::string text = answers_.substr(std::min(taken_, answers_.size()), bytes);
    taken_ += bytes;
    return text;
  }
  [[nodiscard]] bool all_taken() const { return taken_ == answers_.size(); }

 private:
  ByteSpan script_;
  std::string answers_;
  std::size_t taken_ = 0;
};

}  // namespace vmshadow::test
