// Sender, shipper and receiver over loopback, with a store's stand-in behind them; and each against
// a peer that misbehaves.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <filesystem>
#include <future>
#include <thread>

#include "format/wire.h"
#include "ship/epoch_shipper.h"
#include "ship/receiver.h"
#include "support/memory_epoch_image.h"
#include "support/recording_epoch_sink.h"

namespace vmshadow::ship {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

/// A receiver that serves until the end of the test.
class RunningReceiver {
 public:
  explicit RunningReceiver(EpochSink& sink, ReceiverOptions options = {})
      : wake_(::eventfd(0, EFD_CLOEXEC)),
        receiver_(*Receiver::listen({"127.0.0.1", 0}, sink, options)),
        address_{"127.0.0.1", receiver_->port()},
        thread_([this] { ASSERT_TRUE(receiver_->serve(wake_.get())); }) {}
  ~RunningReceiver() { stop(); }
  void stop() {
    if (!thread_.joinable()) return;
    const std::uint64_t one = 1;
    EXPECT_EQ(::write(wake_.get(), &one, sizeof one), 8);
    thread_.join();
    receiver_.reset();
  }
  [[nodiscard]] const io::TcpAddress& address() const { return address_; }

 private:
  UniqueFd wake_;
  std::unique_ptr<Receiver> receiver_;
  const io::TcpAddress address_;
  std::thread thread_;
};

class ShipTest : public ::testing::Test {
 protected:
  ShipTest() : receiver_(std::make_unique<RunningReceiver>(sink_)) {}

  MachineDescription machine() const {
    MachineDescription m;
    m.json = "{}";
    m.configuration.resize(4);
    m.layout.blocks = {{"pc.ram", 64 * kPageBytes}};
    m.layout.ram_section_version = 4;
    return m;
  }
  std::unique_ptr<EpochShipper> connect(const std::string& vm = "vm1",
                                        ShipperOptions options = {}) {
    auto shipper = EpochShipper::connect(
        receiver_->address(), vm, system_clock(),
        [this](const CommittedEpoch& epoch) {
          const std::lock_guard lock(mutex_);
          commits_.push_back(epoch);
        },
        options);
    EXPECT_TRUE(shipper) << shipper.error().message;
    return shipper ? std::move(*shipper) : nullptr;
  }
  void ship_epoch(EpochShipper& shipper, Epoch epoch, bool full, unsigned fill) {
    const MachineDescription m = machine();
    shipper.begin_epoch({epoch, full, full ? &m : nullptr});
    PageBatch batch;
    auto bytes = std::shared_ptr<std::byte[]>(new std::byte[kPageBytes]);
    std::fill_n(bytes.get(), kPageBytes, static_cast<std::byte>(fill));
    batch.pages.push_back({BlockIndex{0}, PageNumber{3}, bytes.get()});
    batch.pages.push_back({BlockIndex{0}, PageNumber{4}, nullptr});
    batch.storage.push_back(bytes);
    batch.memory_bytes = kPageBytes;
    shipper.add(std::move(batch));
    shipper.end_epoch(
        {epoch, system_clock().wall(), system_clock().monotonic(), std::vector(9, std::byte{0})});
  }

  test::RecordingEpochSink sink_;
  std::unique_ptr<RunningReceiver> receiver_;
  std::mutex mutex_;
  std::vector<CommittedEpoch> commits_;
};

TEST_F(ShipTest, EpochsArriveInOrderAndAreAcknowledged) {
  auto shipper = connect();
  EXPECT_EQ(shipper->first_epoch(), Epoch{0});
  for (unsigned n = 0; n < 5; ++n) ship_epoch(*shipper, Epoch{n}, n == 0, n + 1);
  ASSERT_TRUE(shipper->flush(milliseconds(5000)));
  ASSERT_TRUE(shipper->lag());
  shipper.reset();
  ASSERT_EQ(sink_.committed.size(), 5u);
  ASSERT_EQ(commits_.size(), 5u);
  for (unsigned n = 0; n < 5; ++n) {
    EXPECT_EQ(commits_[n].epoch, Epoch{n});
    EXPECT_EQ(commits_[n].store_sync.count(), 7);
    EXPECT_EQ(commits_[n].encoded.captured_pages, 2u);
    EXPECT_EQ(commits_[n].encoded.data_pages, 1u);
  }
  // Unchanged since epoch 0: the zero page travels once.
  EXPECT_EQ(commits_[1].encoded.unchanged_pages, 1u);
  EXPECT_EQ(format::decode_prefix(sink_.committed[0].records.front())->head.type,
            format::RecordType::machine);
}

/// Threads of this process that only get processors nobody else wants.
std::size_t idle_threads() {
  std::size_t count = 0;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    const auto id = static_cast<pid_t>(std::stol(task.path().filename().string()));
    count += ::sched_getscheduler(id) == SCHED_IDLE ? 1 : 0;
  }
  return count;
}

TEST_F(ShipTest, OnlyTheEncoderStepsBackAndOnlyBehindTheFullPass) {
  ShipperOptions options;
  options.encoder_priority = ThreadPriority::idle;
  auto shipper = connect("vm1", options);
  ship_epoch(*shipper, Epoch{0}, true, 1);
  ASSERT_TRUE(shipper->flush(milliseconds(5000)));
  EXPECT_EQ(idle_threads(), 0u) << "until it is durable the VM is not protected";
  shipper->set_acceleration(16);
  ship_epoch(*shipper, Epoch{1}, false, 2);
  ASSERT_TRUE(shipper->flush(milliseconds(20000)));
  EXPECT_EQ(idle_threads(), 1u);
  shipper->hurry();
  EXPECT_EQ(idle_threads(), ::geteuid() == 0 ? 0u : idle_threads());
  shipper.reset();
  EXPECT_EQ(sink_.committed.size(), 2u);
}

TEST_F(ShipTest, TheStoresRefusalReachesTheOperatorUnchanged) {
  sink_.refuse_open = Error{Errc::in_use, "VM 'vm1' is protected by 192.0.2.1:99 already"};
  const auto shipper =
      EpochShipper::connect(receiver_->address(), "vm1", system_clock(), [](const auto&) {});
  ASSERT_FALSE(shipper);
  EXPECT_EQ(shipper.error().code, Errc::in_use);
  EXPECT_THAT(shipper.error().message, HasSubstr("protected by 192.0.2.1:99 already"));
}

TEST_F(ShipTest, SecondSidecarOfTheSameVmIsRefusedAndTheFirstGoesOn) {
  auto first = connect();
  const auto second =
      EpochShipper::connect(receiver_->address(), "vm1", system_clock(), [](const auto&) {});
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Errc::in_use);
  ship_epoch(*first, Epoch{0}, true, 1);
  EXPECT_TRUE(first->flush(milliseconds(5000)));
}

TEST_F(ShipTest, ARefusedCommitIsTheFailureSeenByCapture) {
  auto shipper = connect();
  {
    const std::lock_guard lock(sink_.mutex);
    sink_.refuse_commit = Error{Errc::no_space, "the store is full"};
  }
  ship_epoch(*shipper, Epoch{0}, true, 1);
  const auto flushed = shipper->flush(milliseconds(5000));
  ASSERT_FALSE(flushed);
  EXPECT_EQ(flushed.error().code, Errc::no_space);
  EXPECT_THAT(flushed.error().message, HasSubstr("the store is full"));
  const auto room = shipper->wait_for_room(milliseconds(1));
  ASSERT_FALSE(room);
  EXPECT_EQ(room.error().code, Errc::no_space);
  EXPECT_EQ(commits_.size(), 0u);
}

TEST_F(ShipTest, AStoreThatDiesIsNoticedAndNeverBlocksCapture) {
  auto shipper = connect();
  ship_epoch(*shipper, Epoch{0}, true, 1);
  ASSERT_TRUE(shipper->flush(milliseconds(5000)));
  receiver_->stop();
  for (unsigned n = 1; n < 50; ++n) ship_epoch(*shipper, Epoch{n}, false, n);
  const auto flushed = shipper->flush(milliseconds(5000));
  ASSERT_FALSE(flushed);
  EXPECT_EQ(flushed.error().code, Errc::closed) << flushed.error().message;
  EXPECT_THAT(flushed.error().message, HasSubstr("127.0.0.1:"));
}

TEST_F(ShipTest, ASlowStoreMakesCaptureWaitNotTheGuest) {
  std::promise<void> let_go;
  auto gate = let_go.get_future().share();
  sink_.before_commit = [gate] { gate.wait(); };
  ShipperOptions options;
  options.unacknowledged_max = 2;
  auto shipper = connect("vm1", options);
  ship_epoch(*shipper, Epoch{0}, true, 1);
  EXPECT_TRUE(*shipper->wait_for_room(milliseconds(1000)));
  ship_epoch(*shipper, Epoch{1}, false, 2);
  EXPECT_FALSE(*shipper->wait_for_room(milliseconds(50)));
  EXPECT_EQ(shipper->flush(milliseconds(20)).error().code, Errc::timed_out);
  let_go.set_value();
  EXPECT_TRUE(shipper->flush(milliseconds(5000)));
  EXPECT_TRUE(*shipper->wait_for_room(milliseconds(1000)));
}

TEST_F(ShipTest, AnAbandonedEpochEndsTheSession) {
  auto shipper = connect();
  const MachineDescription m = machine();
  shipper->begin_epoch({Epoch{0}, true, &m});
  shipper->abandon_epoch();
  for (int i = 0; i < 500 && !shipper->failure(); ++i) {
    std::this_thread::sleep_for(milliseconds(10));
  }
  ASSERT_TRUE(shipper->failure());
  EXPECT_THAT(shipper->failure()->message, HasSubstr("abandoned"));
  EXPECT_TRUE(sink_.committed.empty());
}

/// The image of an epoch that was committed before: page 3 of fill 1, one page of fill 8.
std::unique_ptr<testing::MemoryEpochImage> committed_image(const MachineDescription& machine) {
  auto image = std::make_unique<testing::MemoryEpochImage>();
  image->info_.epoch = Epoch{4};
  image->info_.generation = Generation{2};
  image->machine_ = machine;
  image->pages_[{BlockIndex{0}, PageNumber{3}}] = testing::page_of(1);
  image->pages_[{BlockIndex{0}, PageNumber{9}}] = testing::page_of(8);
  image->pages_[{BlockIndex{0}, PageNumber{10}}] = testing::page_of(0);
  return image;
}

class ShipOnBaseTest : public ShipTest {
 protected:
  ShipOnBaseTest() {
    sink_.next = Epoch{5};
    sink_.generation = Generation{6};
    sink_.open_base = [this]() -> Result<std::unique_ptr<EpochImage>> {
      return committed_image(machine());
    };
  }
  format::RecordHead head_of_first_record() {
    return format::decode_prefix(sink_.committed.at(0).records.front())->head;
  }
};

TEST_F(ShipOnBaseTest, OnlyWhatDiffersIsShippedUnderTheBasesGeneration) {
  auto shipper = connect();
  EXPECT_EQ(shipper->builds_on(), Epoch{4});
  ship_epoch(*shipper, Epoch{5}, true, 1);
  ASSERT_TRUE(shipper->flush(milliseconds(5000)));
  EXPECT_TRUE(sink_.may_build);
  shipper.reset();
  ASSERT_EQ(commits_.size(), 1u);
  EXPECT_EQ(commits_[0].encoded.unchanged_pages, 2u);
  EXPECT_FALSE(commits_[0].encoded.full);
  EXPECT_EQ(head_of_first_record().generation, Generation{2});
  EXPECT_EQ(head_of_first_record().type, format::RecordType::device_state);
}

TEST_F(ShipOnBaseTest, AllIsShippedIfToldSo) {
  ShipperOptions options;
  options.build_on_committed = false;
  auto shipper = connect("vm1", options);
  EXPECT_FALSE(shipper->builds_on());
  EXPECT_FALSE(sink_.may_build);
  ship_epoch(*shipper, Epoch{5}, true, 1);
  ASSERT_TRUE(shipper->flush(milliseconds(5000)));
  shipper.reset();
  EXPECT_TRUE(commits_.at(0).encoded.full);
  EXPECT_EQ(head_of_first_record().generation, Generation{6});
}

TEST_F(ShipOnBaseTest, ABaseThatCannotBeReadIsNone) {
  class Damaged : public testing::MemoryEpochImage {
   public:
    [[nodiscard]] Status for_each_page(BlockIndex, const PageVisitor& visit) const override {
      VMSHADOW_TRY(visit(PageNumber{1}, pages_.begin()->second.data()));
      return fail(Errc::corrupt, "segment 3 is damaged");
    }
  };
  sink_.open_base = [this]() -> Result<std::unique_ptr<EpochImage>> {
    auto image = std::make_unique<Damaged>();
    static_cast<testing::MemoryEpochImage&>(*image) = *committed_image(machine());
    return image;
  };
  auto shipper = connect();
  EXPECT_FALSE(shipper->builds_on());
  EXPECT_FALSE(sink_.may_build);
  ship_epoch(*shipper, Epoch{5}, true, 1);
  ASSERT_TRUE(shipper->flush(milliseconds(5000)));
  shipper.reset();
  EXPECT_TRUE(commits_.at(0).encoded.full);
}

TEST_F(ShipOnBaseTest, AStoreThatContradictsItselfIsRefused) {
  sink_.open_base = [this]() -> Result<std::unique_ptr<EpochImage>> {
    auto image = committed_image(machine());
    image->pages_[{BlockIndex{0}, PageNumber{64}}] = testing::page_of(1);  // the block has 64
    return image;
  };
  const auto outside =
      EpochShipper::connect(receiver_->address(), "vm1", system_clock(), [](const auto&) {});
  ASSERT_FALSE(outside);
  EXPECT_THAT(outside.error().message, HasSubstr("a page that the VM has not"));

  sink_.open_base = [this]() -> Result<std::unique_ptr<EpochImage>> {
    auto image = committed_image(machine());
    image->info_.generation = Generation{6};
    return image;
  };
  const auto newer =
      EpochShipper::connect(receiver_->address(), "vm2", system_clock(), [](const auto&) {});
  ASSERT_FALSE(newer);
  EXPECT_THAT(newer.error().message, HasSubstr("generation 6 to build on, in generation 6"));

  ShipperOptions small;
  small.ram_bytes_max = 63 * kPageBytes;
  sink_.open_base = [this]() -> Result<std::unique_ptr<EpochImage>> {
    return committed_image(machine());
  };
  const auto large = EpochShipper::connect(
      receiver_->address(), "vm3", system_clock(), [](const auto&) {}, small);
  ASSERT_FALSE(large);
  EXPECT_THAT(large.error().message, HasSubstr("more than this host can have"));
}

TEST_F(ShipOnBaseTest, ToldToStopWhileTheStoreReads) {
  std::promise<void> let_go;
  auto gate = let_go.get_future().share();
  sink_.open_base = [this, gate]() -> Result<std::unique_ptr<EpochImage>> {
    gate.wait();
    return committed_image(machine());
  };
  ShipperOptions options;
  options.cancelled = [] { return true; };
  const auto stopped = EpochShipper::connect(
      receiver_->address(), "vm1", system_clock(), [](const auto&) {}, options);
  let_go.set_value();
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, Errc::cancelled);
}

/// A connection made by hand.
class RawPeer {
 public:
  explicit RawPeer(const io::TcpAddress& address)
      : channel_(*io::connect_tcp(address, io::deadline_after(std::chrono::seconds(2)))) {}
  void send(ByteSpan bytes) {
    ASSERT_TRUE(channel_.write(bytes, io::deadline_after(std::chrono::seconds(2))));
  }
  void hello(const std::string& vm, std::uint16_t version = 1) {
    format::Hello h;
    h.vm_name = vm;
    h.version_min = h.version_max = version;
    std::vector<std::byte> out;
    const auto start = format::begin_record(out);
    format::append_body(out, h);
    format::finish_record(out, start, {format::RecordType::hello, 0, vm_id(vm), {}, {}});
    send(out);
  }
  /// What the store says before it closes.
  format::Refusal refusal() {
    for (;;) {
      auto record = channel_.read(io::deadline_after(std::chrono::seconds(5)));
      if (!record) return {record.error().code, record.error().message};
      if (record->prefix.head.type != format::RecordType::refusal) continue;
      return *format::decode_refusal(record->body());
    }
  }

 private:
  RecordChannel channel_;
};

TEST_F(ShipTest, GarbageInsteadOfAHelloIsRefused) {
  RawPeer peer(receiver_->address());
  peer.send(std::vector(4096, std::byte{'G'}));
  const auto refusal = peer.refusal();
  EXPECT_EQ(refusal.code, Errc::corrupt);
  EXPECT_THAT(refusal.text, HasSubstr("not a vmshadow record"));
}

TEST_F(ShipTest, AnotherProtocolVersionIsRefusedWithBothRanges) {
  RawPeer peer(receiver_->address());
  peer.hello("vm1", 9);
  const auto refusal = peer.refusal();
  EXPECT_EQ(refusal.code, Errc::version);
  EXPECT_THAT(refusal.text, HasSubstr("9 to 9"));
}

TEST_F(ShipTest, RecordsOfAnotherVmOrGenerationAreRefused) {
  for (const auto& [vm, generation] : {std::pair{"vm2", 1u}, std::pair{"vm1", 2u}}) {
    RawPeer peer(receiver_->address());
    peer.hello("vm1");
    std::vector<std::byte> out;
    format::append_record(
        out, {format::RecordType::device_state, 0, vm_id(vm), Generation{generation}, Epoch{0}},
        std::vector(4, std::byte{0}));
    peer.send(out);
    EXPECT_THAT(peer.refusal().text, HasSubstr("another VM or generation"));
    // Its session ends with it.
    for (int i = 0; i < 500; ++i) {
      const std::lock_guard lock(sink_.mutex);
      if (!sink_.open_sessions["vm1"]) break;
      std::this_thread::sleep_for(milliseconds(5));
    }
  }
}

TEST_F(ShipTest, ABaseIsAskedForOnceAndBeforeAnyEpoch) {
  const auto query = [] {
    std::vector<std::byte> out;
    const auto start = format::begin_record(out);
    format::append_body(out, format::BaseQuery{});
    format::finish_record(
        out, start, {format::RecordType::base_query, 0, vm_id("vm1"), Generation{1}, Epoch{0}});
    return out;
  }();
  RawPeer twice(receiver_->address());
  twice.hello("vm1", 2);
  twice.send(query);
  twice.send(query);
  EXPECT_THAT(twice.refusal().text, HasSubstr("type 0x107 from a sidecar"));
  for (int i = 0; i < 500; ++i) {
    const std::lock_guard lock(sink_.mutex);
    if (!sink_.open_sessions["vm1"]) break;
    std::this_thread::sleep_for(milliseconds(5));
  }
  RawPeer old(receiver_->address());
  old.hello("vm1", 1);
  old.send(query);
  EXPECT_THAT(old.refusal().text, HasSubstr("type 0x107 from a sidecar"));
}

TEST_F(ShipTest, ADamagedRecordIsRefusedBeforeTheStoreSeesIt) {
  RawPeer peer(receiver_->address());
  peer.hello("vm1");
  std::vector<std::byte> out;
  format::append_record(
      out, {format::RecordType::device_state, 0, vm_id("vm1"), Generation{1}, Epoch{0}},
      std::vector(4, std::byte{0}));
  out.back() ^= std::byte{1};
  peer.send(out);
  EXPECT_EQ(peer.refusal().code, Errc::corrupt);
}

TEST(ReceiverLimitsTest, SilentAndSurplusPeersAreTurnedAway) {
  test::RecordingEpochSink sink;
  ReceiverOptions options;
  options.hello_within = milliseconds(50);
  options.connections_max = 1;
  RunningReceiver receiver(sink, options);
  RawPeer silent(receiver.address());
  RawPeer surplus(receiver.address());
  EXPECT_THAT(surplus.refusal().text, HasSubstr("already serves 1"));
  EXPECT_EQ(silent.refusal().code, Errc::timed_out);
}

TEST(SenderTest, NobodyListeningIsSaidWithTheAddress) {
  const auto listener = io::listen_tcp({"127.0.0.1", 0});
  const io::TcpAddress address{"127.0.0.1", *io::local_port(listener->get())};
  const_cast<UniqueFd&>(*listener).reset();
  const auto sender = Sender::connect(address, "vm1");
  ASSERT_FALSE(sender);
  EXPECT_EQ(sender.error().code, Errc::closed);
  EXPECT_THAT(sender.error().message, HasSubstr("connecting to 127.0.0.1:"));
}

TEST(SenderTest, AStoreThatNeverAnswersIsTimedOut) {
  const auto listener = io::listen_tcp({"127.0.0.1", 0});
  SenderOptions options;
  options.connect = milliseconds(50);
  const auto sender =
      Sender::connect({"127.0.0.1", *io::local_port(listener->get())}, "vm1", options);
  ASSERT_FALSE(sender);
  EXPECT_EQ(sender.error().code, Errc::timed_out);
}

// Longer than the silence limit, but never silent: every piece that the link takes is a sign of
// life.
TEST(SenderTest, ASlowLinkIsNoSilence) {
  const auto listener = io::listen_tcp({"127.0.0.1", 0});
  const io::TcpAddress address{"127.0.0.1", *io::local_port(listener->get())};
  SenderOptions options;
  options.ping_every = milliseconds(50);
  options.silence = milliseconds(600);
  std::promise<void> sent;
  std::thread store([&] {
    auto fd =
        io::accept_connection(listener->get(), -1, io::deadline_after(std::chrono::seconds(5)));
    RecordChannel channel(std::move(**fd));
    ASSERT_TRUE(channel.read(io::deadline_after(std::chrono::seconds(5))));
    std::vector<std::byte> out;
    const auto start = format::begin_record(out);
    format::append_body(out, format::Welcome{1, 0, Generation{1}, Epoch{0}});
    format::finish_record(out, start, {format::RecordType::welcome, 0, vm_id("vm1"), {}, {}});
    ASSERT_TRUE(channel.write(out, io::deadline_after(std::chrono::seconds(5))));
    // Takes what comes, a little at a time, and says nothing.
    const auto done = sent.get_future();
    std::vector<std::byte> into(std::size_t{256} << 10);
    while (done.wait_for(milliseconds(10)) != std::future_status::ready) {
      auto got = io::read_some(channel.fd(), into, io::deadline_after(milliseconds(1)));
      if (got && *got == 0) break;
    }
  });
  auto sender = Sender::connect(address, "vm1", options);
  ASSERT_TRUE(sender) << sender.error().message;
  std::atomic<bool> failed{false};
  (*sender)->start([](Epoch, const format::Ack&) {}, [&](const Error&) { failed = true; });
  const std::vector<std::byte> bytes(std::size_t{1} << 20);
  const auto until = std::chrono::steady_clock::now() + milliseconds(1500);
  while (std::chrono::steady_clock::now() < until) {
    const auto status = (*sender)->send(bytes);
    EXPECT_TRUE(status) << status.error().message;
    if (!status) break;
  }
  EXPECT_FALSE(failed);
  sent.set_value();
  store.join();
}

TEST(SenderTest, AVmNameThatIsNoneIsRefusedBeforeConnecting) {
  const auto sender = Sender::connect({"127.0.0.1", 1}, "../etc");
  ASSERT_FALSE(sender);
  EXPECT_EQ(sender.error().code, Errc::invalid_argument);
}

}  // namespace
}  // namespace vmshadow::ship
