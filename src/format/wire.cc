#include "format/wire.h"

#include <fmt/format.h>

#include <algorithm>

namespace vmshadow::format {
namespace {

struct HelloBytes {
  le16 version_min, version_max;
  le32 features;
  le32 page_bytes;
  le16 name_bytes;
  le16 reserved;
};
struct WelcomeBytes {
  le16 version;
  le16 reserved;
  le32 features;
  le64 generation;
  le64 next_epoch;
};
struct AckBytes {
  le64 committed_wall_ns;
  le64 sync_us;
};
struct RefusalBytes {
  le16 code;
  le16 text_bytes;
  le32 reserved;
};
struct BaseHashesBytes {
  le32 count;
  le32 reserved;
};
struct BaseHashBytes {
  le64 key;
  le64 low, high;
};
struct BaseEndBytes {
  le64 data_pages;
  le16 text_bytes;
  le16 reserved16;
  le32 reserved32;
};
static_assert(sizeof(HelloBytes) == 16 && sizeof(WelcomeBytes) == 24 && sizeof(AckBytes) == 16 &&
              sizeof(RefusalBytes) == 8 && sizeof(BaseHashesBytes) == 8 &&
              sizeof(BaseHashBytes) == 24 && sizeof(BaseEndBytes) == 16);
static_assert(sizeof(BaseHashesBytes) + kBaseHashesMax * sizeof(BaseHashBytes) <=
              kRecordBodyBytesMax);

tl::unexpected<Error> malformed_message(std::string_view record) {
  return fail(Errc::protocol, fmt::format("malformed {} record", record));
}

/// A peer's sentence, fit for a terminal.
std::string printable(ByteSpan text) {
  std::string printed(reinterpret_cast<const char*>(text.data()), text.size());
  std::replace_if(
      printed.begin(), printed.end(),
      [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }, '?');
  return printed;
}

}  // namespace

void append_body(std::vector<std::byte>& out, const Hello& hello) {
  HelloBytes bytes;
  bytes.version_min = hello.version_min;
  bytes.version_max = hello.version_max;
  bytes.features = hello.features;
  bytes.page_bytes = hello.page_bytes;
  bytes.name_bytes = static_cast<std::uint16_t>(hello.vm_name.size());
  append_struct(out, bytes);
  append_bytes(out, std::as_bytes(std::span(hello.vm_name)));
}

void append_body(std::vector<std::byte>& out, const Welcome& welcome) {
  WelcomeBytes bytes;
  bytes.version = welcome.version;
  bytes.features = welcome.features;
  bytes.generation = welcome.generation.value;
  bytes.next_epoch = welcome.next_epoch.value;
  append_struct(out, bytes);
}

void append_body(std::vector<std::byte>& out, const Ack& ack) {
  AckBytes bytes;
  bytes.committed_wall_ns = static_cast<std::uint64_t>(ack.committed_wall.ns);
  bytes.sync_us = static_cast<std::uint64_t>(ack.sync.count());
  append_struct(out, bytes);
}

void append_body(std::vector<std::byte>& out, const Refusal& refusal) {
  const std::size_t text_bytes = std::min(refusal.text.size(), kRefusalTextBytesMax);
  RefusalBytes bytes;
  bytes.code = static_cast<std::uint16_t>(refusal.code);
  bytes.text_bytes = static_cast<std::uint16_t>(text_bytes);
  append_struct(out, bytes);
  append_bytes(out, std::as_bytes(std::span(refusal.text)).first(text_bytes));
}

void append_body(std::vector<std::byte>& out, const BaseQuery& query) {
  append_bytes(out, query.secret);
}

void append_body(std::vector<std::byte>& out, const BaseHashes& hashes) {
  BaseHashesBytes head;
  head.count = static_cast<std::uint32_t>(hashes.pages.size());
  append_struct(out, head);
  for (const BaseHashes::Page& page : hashes.pages) {
    BaseHashBytes bytes;
    bytes.key = page.key.packed();
    bytes.low = page.hash.low;
    bytes.high = page.hash.high;
    append_struct(out, bytes);
  }
}

void append_body(std::vector<std::byte>& out, const BaseEnd& end) {
  const std::size_t text_bytes = std::min(end.why_not.size(), kRefusalTextBytesMax);
  BaseEndBytes bytes;
  bytes.data_pages = end.data_pages;
  bytes.text_bytes = static_cast<std::uint16_t>(text_bytes);
  append_struct(out, bytes);
  append_bytes(out, std::as_bytes(std::span(end.why_not)).first(text_bytes));
}

Result<Hello> decode_hello(ByteSpan body) {
  BodyReader reader(body);
  HelloBytes bytes;
  ByteSpan name;
  if (!reader.read(bytes) || bytes.reserved.get() != 0 ||
      !reader.read_bytes(bytes.name_bytes.get(), name) || !reader.empty()) {
    return malformed_message("hello");
  }
  Hello hello;
  hello.version_min = bytes.version_min.get();
  hello.version_max = bytes.version_max.get();
  hello.features = bytes.features.get();
  hello.page_bytes = bytes.page_bytes.get();
  hello.vm_name.assign(reinterpret_cast<const char*>(name.data()), name.size());
  if (hello.version_min == 0 || hello.version_min > hello.version_max)
    return malformed_message("hello");
  if (hello.page_bytes != kPageBytes) {
    return fail(Errc::unsupported, fmt::format("pages of {} bytes are not supported, only {}",
                                               hello.page_bytes, kPageBytes));
  }
  if (!is_valid_vm_name(hello.vm_name)) {
    return fail(Errc::invalid_argument, "the hello's VM name is not valid");
  }
  return hello;
}

Result<Welcome> decode_welcome(ByteSpan body) {
  BodyReader reader(body);
  WelcomeBytes bytes;
  if (!reader.read(bytes) || !reader.empty() || bytes.reserved.get() != 0) {
    return malformed_message("welcome");
  }
  Welcome welcome;
  welcome.version = bytes.version.get();
  welcome.features = bytes.features.get();
  welcome.generation = Generation{bytes.generation.get()};
  welcome.next_epoch = Epoch{bytes.next_epoch.get()};
  if (welcome.version < kWireVersionMin || welcome.version > kWireVersionMax) {
    return fail(Errc::version, fmt::format("the store chose protocol version {}, which was not "
                                           "offered",
                                           welcome.version));
  }
  return welcome;
}

Result<Ack> decode_ack(ByteSpan body) {
  BodyReader reader(body);
  AckBytes bytes;
  if (!reader.read(bytes) || !reader.empty()) return malformed_message("ack");
  return Ack{WallTime{static_cast<std::int64_t>(bytes.committed_wall_ns.get())},
             std::chrono::microseconds{static_cast<std::int64_t>(bytes.sync_us.get())}};
}

Result<Refusal> decode_refusal(ByteSpan body) {
  BodyReader reader(body);
  RefusalBytes bytes;
  ByteSpan text;
  if (!reader.read(bytes) || bytes.reserved.get() != 0 ||
      bytes.text_bytes.get() > kRefusalTextBytesMax ||
      !reader.read_bytes(bytes.text_bytes.get(), text) || !reader.empty()) {
    return malformed_message("refusal");
  }
  Refusal refusal;
  const std::uint16_t code = bytes.code.get();
  refusal.code = code >= 1 && code <= static_cast<std::uint16_t>(Errc::cancelled)
                     ? static_cast<Errc>(code)
                     : Errc::io;
  refusal.text = printable(text);
  return refusal;
}

Result<BaseQuery> decode_base_query(ByteSpan body) {
  BodyReader reader(body);
  BaseQuery query;
  if (!reader.read(query.secret) || !reader.empty()) return malformed_message("base_query");
  return query;
}

Result<BaseHashes> decode_base_hashes(ByteSpan body) {
  BodyReader reader(body);
  BaseHashesBytes head;
  if (!reader.read(head) || head.reserved.get() != 0 || head.count.get() == 0 ||
      head.count.get() > kBaseHashesMax ||
      reader.rest().size() != head.count.get() * sizeof(BaseHashBytes)) {
    return malformed_message("base_hashes");
  }
  BaseHashes hashes;
  hashes.pages.reserve(head.count.get());
  for (BaseHashBytes bytes; reader.read(bytes);) {
    hashes.pages.push_back(
        {PageKey::unpack(bytes.key.get()), PageHash{bytes.low.get(), bytes.high.get()}});
  }
  return hashes;
}

Result<BaseEnd> decode_base_end(ByteSpan body) {
  BodyReader reader(body);
  BaseEndBytes bytes;
  ByteSpan text;
  if (!reader.read(bytes) || bytes.reserved16.get() != 0 || bytes.reserved32.get() != 0 ||
      bytes.text_bytes.get() > kRefusalTextBytesMax ||
      !reader.read_bytes(bytes.text_bytes.get(), text) || !reader.empty()) {
    return malformed_message("base_end");
  }
  return BaseEnd{bytes.data_pages.get(), printable(text)};
}

Result<std::uint16_t> choose_version(const Hello& hello) {
  const std::uint16_t version = std::min(hello.version_max, kWireVersionMax);
  if (version < hello.version_min || version < kWireVersionMin) {
    return fail(
        Errc::version,
        fmt::format("no common protocol version: the sidecar speaks {} to {}, this store "
                    "{} to {}; upgrade the older one",
                    hello.version_min, hello.version_max, kWireVersionMin, kWireVersionMax));
  }
  return version;
}

}  // namespace vmshadow::format
