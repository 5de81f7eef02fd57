// The NBD server's half of the protocol, byte by byte, and its connections.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <thread>

#include "nbd/negotiation.h"
#include "nbd/server.h"
#include "nbd/transmission.h"
#include "support/memory_device.h"
#include "support/nbd_script.h"
#include "support/temp_dir.h"

namespace vmshadow::nbd {
namespace {

using test::MemoryDevice;
using test::NbdScript;
using test::ScriptedStream;
using ::testing::HasSubstr;

constexpr std::uint64_t kDiskBytes = 64 << 10;

std::string text_of(const std::vector<std::byte>& bytes, std::size_t from, std::size_t count) {
  return {reinterpret_cast<const char*>(bytes.data()) + from, count};
}

class NbdTest : public testing::Test {
 protected:
  NbdTest() : disk_(std::make_shared<MemoryDevice>(kDiskBytes)) {
    exports_ = {{"disk0", "the first", disk_},
                {"disk1", "", std::make_shared<MemoryDevice>(kDiskBytes, true)}};
  }
  /// The whole conversation; the greeting is taken off the answers.
  Status converse(const NbdScript& script) {
    stream_.emplace(script.bytes());
    VMSHADOW_ASSIGN(auto agreement, negotiate(*stream_, exports_));
    EXPECT_EQ(stream_->next<Greeting>().option_magic.get(), kOptionMagic);
    agreement_ = std::move(agreement);
    return agreement_ ? transmit(*stream_, *agreement_) : Status{};
  }
  /// The next answer to an option: its data.
  std::string option_answer(Option option, OptionReply type) {
    const auto head = stream_->next<OptionReplyHead>();
    EXPECT_EQ(head.magic.get(), kOptionReplyMagic);
    EXPECT_EQ(head.option.get(), static_cast<std::uint32_t>(option));
    EXPECT_EQ(head.type.get(), static_cast<std::uint32_t>(type));
    return stream_->next(head.bytes.get());
  }
  /// go's, of the writable disk.
  void take_choice() {
    option_answer(Option::go, OptionReply::info);
    option_answer(Option::go, OptionReply::ack);
  }
  void take_simple_reply(std::uint64_t cookie, WireError error = WireError::none) {
    const auto reply = stream_->next<SimpleReply>();
    EXPECT_EQ(reply.magic.get(), kSimpleReplyMagic);
    EXPECT_EQ(reply.cookie.get(), cookie);
    EXPECT_EQ(reply.error.get(), static_cast<std::uint32_t>(error));
  }
  std::string take_chunk(std::uint64_t cookie, Chunk type) {
    const auto head = stream_->next<StructuredReply>();
    EXPECT_EQ(head.magic.get(), kStructuredReplyMagic);
    EXPECT_EQ(head.cookie.get(), cookie);
    EXPECT_EQ(head.flags.get(), kChunkDone);
    EXPECT_EQ(head.type.get(), static_cast<std::uint16_t>(type));
    return stream_->next(head.bytes.get());
  }

  std::shared_ptr<MemoryDevice> disk_;
  std::vector<Export> exports_;
  std::optional<ScriptedStream> stream_;
  std::optional<Agreement> agreement_;
};

NbdScript chosen(std::string_view name = "disk0") {
  NbdScript script;
  script.choose(Option::go, name);
  return script;
}

NbdScript chosen_structured() {
  NbdScript script;
  script.option(Option::structured_reply)
      .contexts(Option::set_meta_context, "disk0", {"base:allocation"})
      .choose(Option::go, "disk0");
  return script;
}

TEST_F(NbdTest, WhatWasWrittenIsReadBack) {
  ASSERT_TRUE(converse(
      chosen().write(4096, "hello", kCommandFua).request(Command::read, 4095, 7).disconnect()));
  take_choice();
  take_simple_reply(1);
  take_simple_reply(2);
  EXPECT_EQ(stream_->next(7), std::string("\0hello\0", 7));
  EXPECT_TRUE(stream_->all_taken());
  EXPECT_EQ(disk_->flushes(), 1);
}

TEST_F(NbdTest, ZeroesTrimAndFlushReachTheDevice) {
  const std::string data(3 * 4096, 'x');
  ASSERT_TRUE(converse(chosen()
                           .write(0, data)
                           .request(Command::write_zeroes, 0, 4096, kCommandNoHole)
                           .request(Command::trim, 4096, 4096)
                           .request(Command::flush, 0, 0)
                           .disconnect()));
  take_choice();
  for (std::uint64_t cookie = 1; cookie <= 4; ++cookie) take_simple_reply(cookie);
  EXPECT_EQ(text_of(disk_->content(), 0, 8192), std::string(8192, '\0'));
  EXPECT_EQ(text_of(disk_->content(), 8192, 4096), std::string(4096, 'x'));
  EXPECT_EQ(disk_->flushes(), 1);
  const auto extents = disk_->extents(0, 12288).value();
  EXPECT_FALSE(extents[0].hole);
  EXPECT_TRUE(extents[1].hole);
}

TEST_F(NbdTest, StructuredReadsCarryTheirOffset) {
  ASSERT_TRUE(converse(chosen_structured().request(Command::read, 512, 16).disconnect()));
  option_answer(Option::structured_reply, OptionReply::ack);
  EXPECT_EQ(option_answer(Option::set_meta_context, OptionReply::meta_context),
            NbdScript::number(be32(kAllocationContextId)) + "base:allocation");
  option_answer(Option::set_meta_context, OptionReply::ack);
  take_choice();
  EXPECT_EQ(take_chunk(1, Chunk::offset_data),
            NbdScript::number(be64(512)) + std::string(16, '\0'));
  EXPECT_TRUE(stream_->all_taken());
}

TEST_F(NbdTest, BlockStatusMergesWhatIsAlike) {
  ASSERT_TRUE(converse(chosen_structured()
                           .write(8192, "data")
                           .request(Command::block_status, 0, 5 * 4096)
                           .request(Command::block_status, 0, 5 * 4096, kCommandReqOne)
                           .disconnect()));
  option_answer(Option::structured_reply, OptionReply::ack);
  option_answer(Option::set_meta_context, OptionReply::meta_context);
  option_answer(Option::set_meta_context, OptionReply::ack);
  take_choice();
  take_simple_reply(1);
  const auto descriptor = [](std::uint32_t bytes, std::uint32_t flags) {
    return NbdScript::number(be32(bytes)) + NbdScript::number(be32(flags));
  };
  const std::string context = NbdScript::number(be32(kAllocationContextId));
  EXPECT_EQ(take_chunk(2, Chunk::block_status),
            context + descriptor(8192, kStateHole | kStateZero) + descriptor(4096, 0) +
                descriptor(8192, kStateHole | kStateZero));
  EXPECT_EQ(take_chunk(3, Chunk::block_status),
            context + descriptor(8192, kStateHole | kStateZero));
}

TEST_F(NbdTest, WhatIsNotPossibleIsRefusedAndTheConversationGoesOn) {
  ASSERT_TRUE(converse(chosen()
                           .request(Command::read, kDiskBytes - 1, 2)
                           .write(kDiskBytes - 1, "ab")
                           .request(Command::read, ~std::uint64_t{0}, 2)
                           .request(Command::read, 0, kPayloadBytesMax + 1)
                           .request(Command::read, 0, 0)
                           .request(Command::block_status, 0, 4096)
                           .request(Command::trim, 0, 4096, kCommandNoHole)
                           .request(static_cast<Command>(99), 0, 1)
                           .request(Command::read, 0, 1)
                           .disconnect()));
  take_choice();
  take_simple_reply(1, WireError::invalid);
  take_simple_reply(2, WireError::no_space);
  for (std::uint64_t cookie = 3; cookie <= 8; ++cookie) {
    take_simple_reply(cookie, WireError::invalid);
  }
  take_simple_reply(9);
  EXPECT_EQ(stream_->next(1).size(), 1U);
  EXPECT_TRUE(stream_->all_taken());
}

TEST_F(NbdTest, WhatIsReadOnlyIsNotWritten) {
  ASSERT_TRUE(converse(chosen("disk1").write(0, "x").request(Command::flush, 0, 0).disconnect()));
  const std::string info = option_answer(Option::go, OptionReply::info);
  EXPECT_EQ(info.size(), sizeof(InfoExport));
  EXPECT_NE(static_cast<unsigned char>(info[11]) & kReadOnly, 0);
  option_answer(Option::go, OptionReply::ack);
  take_simple_reply(1, WireError::permission);
  take_simple_reply(2);
}

TEST_F(NbdTest, TheDevicesErrorIsTheClientsToSee) {
  disk_->fail_with({Errc::no_space, "the store is full"});
  ASSERT_TRUE(
      converse(chosen_structured().write(0, "x").request(Command::read, 0, 1).disconnect()));
  option_answer(Option::structured_reply, OptionReply::ack);
  option_answer(Option::set_meta_context, OptionReply::meta_context);
  option_answer(Option::set_meta_context, OptionReply::ack);
  take_choice();
  for (const std::uint64_t cookie : {1, 2}) {
    const std::string chunk = take_chunk(cookie, Chunk::error);
    EXPECT_EQ(chunk.substr(0, 4), NbdScript::number(be32(28)));
    EXPECT_THAT(chunk, HasSubstr("the store is full"));
  }
}

TEST_F(NbdTest, OptionsAreAnswered) {
  NbdScript script;
  script.option(Option::list)
      .option(Option::starttls)
      .option(static_cast<Option>(77), "whatever")
      .choose(Option::info, "none")
      .option(Option::go, "bad")
      .contexts(Option::list_meta_context, "disk0", {})
      .option(Option::structured_reply)
      .contexts(Option::list_meta_context, "disk0", {})
      .choose(Option::info, "disk0", {kInfoBlockSize, kInfoDescription, 999})
      .option(Option::list, std::string(100000, 'x'))
      .option(Option::abort);
  ASSERT_TRUE(converse(script));
  EXPECT_FALSE(agreement_);
  EXPECT_EQ(option_answer(Option::list, OptionReply::server),
            NbdScript::number(be32(5)) + "disk0the first");
  EXPECT_EQ(option_answer(Option::list, OptionReply::server), NbdScript::number(be32(5)) + "disk1");
  option_answer(Option::list, OptionReply::ack);
  option_answer(Option::starttls, OptionReply::unsupported);
  option_answer(static_cast<Option>(77), OptionReply::unsupported);
  option_answer(Option::info, OptionReply::unknown);
  option_answer(Option::go, OptionReply::invalid);
  option_answer(Option::list_meta_context, OptionReply::invalid);
  option_answer(Option::structured_reply, OptionReply::ack);
  EXPECT_THAT(option_answer(Option::list_meta_context, OptionReply::meta_context),
              HasSubstr("base:allocation"));
  option_answer(Option::list_meta_context, OptionReply::ack);
  EXPECT_EQ(option_answer(Option::info, OptionReply::info).size(), sizeof(InfoExport));
  EXPECT_EQ(option_answer(Option::info, OptionReply::info).size(), sizeof(InfoBlockSize));
  EXPECT_THAT(option_answer(Option::info, OptionReply::info), HasSubstr("the first"));
  option_answer(Option::info, OptionReply::ack);
  option_answer(Option::list, OptionReply::too_big);
  option_answer(Option::abort, OptionReply::ack);
  EXPECT_TRUE(stream_->all_taken());
}

TEST_F(NbdTest, AContextHoldsForItsExportAlone) {
  NbdScript script;
  script.option(Option::structured_reply)
      .contexts(Option::set_meta_context, "disk1", {"base:allocation"})
      .choose(Option::go, "disk0")
      .disconnect();
  ASSERT_TRUE(converse(script));
  ASSERT_TRUE(agreement_);
  EXPECT_TRUE(agreement_->structured);
  EXPECT_FALSE(agreement_->allocation);
}

TEST_F(NbdTest, TheOldWayOfChoosing) {
  NbdScript script(kFixedNewstyle);
  script.option(Option::export_name, "").request(Command::read, 0, 1).disconnect();
  ASSERT_TRUE(converse(script));
  EXPECT_EQ(stream_->next<be64>().get(), kDiskBytes);
  EXPECT_EQ(stream_->next<be16>().get() & kReadOnly, 0);
  EXPECT_EQ(stream_->next(124), std::string(124, '\0'));
  take_simple_reply(1);
}

TEST_F(NbdTest, WhatCannotBeFollowedEndsTheConversation) {
  const auto error_of = [&](const NbdScript& script) {
    const auto done = converse(script);
    return done ? std::string("none") : done.error().message;
  };
  EXPECT_THAT(error_of(NbdScript(0)), HasSubstr("fixed newstyle"));
  EXPECT_THAT(error_of(NbdScript(0x80000001)), HasSubstr("unknown handshake flags"));
  EXPECT_THAT(error_of(NbdScript().text(std::string(16, 'x'))), HasSubstr("magic"));
  OptionHead huge;
  huge.bytes = 0xffffffff;
  EXPECT_THAT(error_of(NbdScript().add(huge)), HasSubstr("an option of 4294967295 bytes"));
  EXPECT_THAT(error_of(NbdScript().option(Option::export_name, "none")),
              HasSubstr("does not exist"));
  EXPECT_THAT(error_of(chosen().text(std::string(28, 'x'))), HasSubstr("magic"));
  EXPECT_THAT(error_of(chosen().request(Command::write, 0, kPayloadBytesMax + 1)),
              HasSubstr("a write of"));
  EXPECT_THAT(error_of(chosen().request(Command::write, 0, 10).text("short")),
              HasSubstr("the script ends"));
  EXPECT_EQ(text_of(disk_->content(), 0, 5), std::string(5, '\0'));
}

TEST_F(NbdTest, RangesKeepToTheDevicesBlocks) {
  class Blocks final : public BlockDevice {
   public:
    [[nodiscard]] std::uint64_t bytes() const override { return kDiskBytes; }
    [[nodiscard]] std::uint32_t block_bytes() const override { return 512; }
    [[nodiscard]] bool read_only() const override { return false; }
    [[nodiscard]] Status read(std::uint64_t, MutableByteSpan) override { return {}; }
    [[nodiscard]] Status write(std::uint64_t, ByteSpan) override { return {}; }
    [[nodiscard]] Status write_zeroes(std::uint64_t, std::uint64_t, bool) override { return {}; }
    [[nodiscard]] Status trim(std::uint64_t, std::uint64_t) override { return {}; }
    [[nodiscard]] Status flush() override { return {}; }
  };
  exports_ = {{"disk0", "", std::make_shared<Blocks>()}};
  NbdScript script;
  script.choose(Option::go, "disk0", {kInfoBlockSize})
      .request(Command::trim, 512, 512)
      .request(Command::trim, 256, 512)
      .request(Command::trim, 512, 256)
      .disconnect();
  ASSERT_TRUE(converse(script));
  option_answer(Option::go, OptionReply::info);
  EXPECT_EQ(option_answer(Option::go, OptionReply::info).substr(2, 4),
            NbdScript::number(be32(512)));
  option_answer(Option::go, OptionReply::ack);
  take_simple_reply(1);
  take_simple_reply(2, WireError::invalid);
  take_simple_reply(3, WireError::invalid);
}

// ---- connections

class RunningServer {
 public:
  RunningServer(const std::string& path, std::vector<Export> exports, ServerOptions options = {})
      : wake_(::eventfd(0, EFD_CLOEXEC)),
        server_(Server::listen(path, std::move(exports), options).value()),
        thread_([this] { EXPECT_TRUE(server_->serve(wake_.get())); }) {}
  ~RunningServer() {
    const std::uint64_t one = 1;
    EXPECT_EQ(::write(wake_.get(), &one, sizeof one), 8);
    thread_.join();
  }

 private:
  UniqueFd wake_;
  std::unique_ptr<Server> server_;
  std::thread thread_;
};

/// Empty once the peer has closed; what it said first otherwise.
Result<std::size_t> hear(int fd) {
  std::array<std::byte, 64> bytes{};
  return io::read_some(fd, bytes, io::deadline_after(std::chrono::seconds(30)));
}

TEST_F(NbdTest, AServerEndsItsConnectionsAndRefusesTooMany) {
  const test::TempDir folder;
  ServerOptions options;
  options.connections_max = 2;
  std::vector<UniqueFd> clients;
  {
    const RunningServer server(folder.file("nbd"), exports_, options);
    for (int i = 0; i < 2; ++i) {
      clients.push_back(io::connect_unix(folder.file("nbd"), io::kNoDeadline).value());
      EXPECT_EQ(hear(clients.back().get()).value(), sizeof(Greeting));
    }
    const UniqueFd surplus = io::connect_unix(folder.file("nbd"), io::kNoDeadline).value();
    EXPECT_EQ(hear(surplus.get()).value(), 0U);
  }
  for (const UniqueFd& client : clients) EXPECT_EQ(hear(client.get()).value(), 0U);
}

TEST_F(NbdTest, AClientThatSaysNothingIsNotWaitedForForEver) {
  const test::TempDir folder;
  ServerOptions options;
  options.handshake_within = std::chrono::milliseconds(50);
  const RunningServer server(folder.file("nbd"), exports_, options);
  const UniqueFd client = io::connect_unix(folder.file("nbd"), io::kNoDeadline).value();
  EXPECT_EQ(hear(client.get()).value(), sizeof(Greeting));
  EXPECT_EQ(hear(client.get()).value(), 0U);
}

}  // namespace
}  // namespace vmshadow::nbd
