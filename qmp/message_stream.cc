#include "qmp/message_stream.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>
#include <utility>

namespace vmshadow::qmp {
namespace {

/// A buffer that once held a large message is not kept.
constexpr std::size_t kKeptBytesMax = std::size_t{1} << 20;

std::string_view text_of(ByteSpan bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

bool is_space(unsigned char byte) {
  return byte == ' ' || byte == '\n' || byte == '\r' || byte == '\t';
}

}  // namespace

std::string excerpt(std::string_view text) {
  constexpr std::size_t kShownMax = 48;
  std::string shown(text.substr(0, kShownMax));
  std::replace_if(
      shown.begin(), shown.end(), [](char c) { return c < ' ' || c > '~'; }, '.');
  if (text.size() > kShownMax) shown += "...";
  return shown;
}

std::string printable(std::string text) {
  const auto is_control = [](unsigned char c) { return c < ' ' || c == 0x7f; };
  std::replace_if(text.begin(), text.end(), is_control, '.');
  return text;
}

Status MessageStream::feed(ByteSpan bytes) {
  if (broken_) return fail(*broken_);
  const auto broken = [&](Error error) {
    broken_ = std::move(error);
    std::string().swap(text_);
    return fail(*broken_);
  };
  std::size_t begin = 0;  // of what belongs to the unfinished message
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (place_ == Place::between) begin = i;
    auto ended = step(static_cast<unsigned char>(bytes[i]));
    if (!ended) {
      const std::string_view seen = text_.empty() ? text_of(bytes.subspan(begin)) : text_;
      return broken(std::move(ended).error().with_context("'" + excerpt(seen) + "'"));
    }
    if (!*ended) continue;
    if (auto s = append(bytes.subspan(begin, i + 1 - begin)); !s) return broken(s.error());
    if (auto s = finish_message(); !s) return broken(s.error());
  }
  if (place_ == Place::between) return {};
  if (auto s = append(bytes.subspan(begin)); !s) return broken(s.error());
  return {};
}

std::optional<nlohmann::json> MessageStream::next() {
  if (ready_.empty()) return std::nullopt;
  nlohmann::json message = std::move(ready_.front());
  ready_.pop_front();
  return message;
}

Result<bool> MessageStream::step(unsigned char byte) {
  switch (place_) {
    case Place::between:
      if (is_space(byte)) return false;
      if (byte != '{') return fail(Errc::protocol, "a message must be a JSON object");
      place_ = Place::inside;
      depth_ = 1;
      return false;
    case Place::inside:
      if (byte == '"') place_ = Place::string;
      if (byte == '{' || byte == '[') {
        if (++depth_ > kNestingDepthMax) {
          return fail(Errc::protocol,
                      fmt::format("a message is nested over {} levels deep", kNestingDepthMax));
        }
      }
      if ((byte == '}' || byte == ']') && --depth_ == 0) {
        place_ = Place::between;
        return true;
      }
      return false;
    case Place::string:
      // JSON escapes control characters, so a raw one means that the quotes are out of step.
      if (byte < ' ') return fail(Errc::protocol, "a string has a control character in it");
      if (byte == '"') place_ = Place::inside;
      if (byte == '\\') place_ = Place::escape;
      return false;
    case Place::escape:
      place_ = Place::string;
      return false;
  }
  return false;
}

Status MessageStream::append(ByteSpan part) {
  if (part.size() > message_bytes_max_ - text_.size()) {
    return fail(Errc::protocol,
                fmt::format("a message is longer than {} bytes", message_bytes_max_));
  }
  // std::string would double, past the limit.
  if (text_.size() + part.size() > text_.capacity()) {
    text_.reserve(
        std::min(std::max(text_.size() + part.size(), 2 * text_.capacity()), message_bytes_max_));
  }
  text_.append(text_of(part));
  return {};
}

Status MessageStream::finish_message() {
  auto message = nlohmann::json::parse(text_, nullptr, false);
  if (message.is_discarded()) {
    return fail(Errc::protocol, fmt::format("'{}': a message is not valid JSON", excerpt(text_)));
  }
  ready_.push_back(std::move(message));
  text_.clear();
  if (text_.capacity() > kKeptBytesMax) text_.shrink_to_fit();
  return {};
}

}  // namespace vmshadow::qmp
