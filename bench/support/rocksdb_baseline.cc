#include "support/rocksdb_baseline.h"

#include <fmt/format.h>
#include <lz4.h>
#include <rocksdb/convenience.h>
#include <rocksdb/db.h>
#include <rocksdb/table.h>
#include <rocksdb/version.h>
#include <rocksdb/write_batch.h>

#include <array>
#include <chrono>
#include <cstring>
#include <thread>

#include "base/assert.h"

namespace vmshadow::bench {
namespace {

constexpr std::size_t kMib = std::size_t{1} << 20;
/// Older versions stepped over before it is cheaper to seek to the next page.
constexpr int kStepsBeforeSeek = 16;

using Key = std::array<char, 20>;

void put_big_endian(char* at, std::uint64_t value, int bytes) {
  for (int i = bytes; i-- > 0; value >>= 8) at[i] = static_cast<char>(value & 0xff);
}

std::uint64_t get_big_endian(const char* at, int bytes) {
  std::uint64_t value = 0;
  for (int i = 0; i < bytes; ++i) value = value << 8 | static_cast<unsigned char>(at[i]);
  return value;
}

Key make_key(std::uint32_t vm, std::uint64_t page, Epoch epoch) {
  Key key;
  put_big_endian(key.data(), vm, 4);
  put_big_endian(key.data() + 4, page, 8);
  put_big_endian(key.data() + 12, ~epoch.value, 8);
  return key;
}

rocksdb::Slice slice(const Key& key) { return {key.data(), key.size()}; }

Status status_of(const rocksdb::Status& status) {
  if (status.ok()) return {};
  return fail(Errc::io, "RocksDB: " + status.ToString());
}

rocksdb::Options tuned_options() {
  rocksdb::Options options;
  options.create_if_missing = true;
  options.error_if_exists = true;
  options.compression = rocksdb::kNoCompression;
  options.write_buffer_size = 256 * kMib;
  options.max_write_buffer_number = 4;
  options.max_background_jobs = 4;
  options.target_file_size_base = 128 * kMib;
  options.max_bytes_for_level_base = 1024 * kMib;
  options.use_direct_io_for_flush_and_compaction = true;
  options.compaction_readahead_size = 4 * kMib;
  options.recycle_log_file_num = 4;
  options.enable_pipelined_write = true;
  rocksdb::BlockBasedTableOptions table;
  table.block_size = 16 << 10;
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return options;
}

class Database final : public RocksdbBaseline {
 public:
  Database(std::unique_ptr<rocksdb::DB> db, std::string options)
      : db_(std::move(db)), options_(std::move(options)) {}

  Status put_epoch(std::uint32_t vm, Epoch epoch, const EpochPlan& plan,
                   const PageValues& values) override {
    rocksdb::WriteBatch batch(plan.pages.size() * 2048);
    for (std::size_t i = 0; i < plan.pages.size(); ++i) {
      const Key key = make_key(vm, plan.pages[i], epoch);
      const ByteSpan value =
          values.value(plan.groups[i / format::kGroupPagesMax], i % format::kGroupPagesMax);
      VMSHADOW_TRY(status_of(
          batch.Put(slice(key), {reinterpret_cast<const char*>(value.data()), value.size()})));
    }
    rocksdb::WriteOptions options;
    options.sync = true;
    return status_of(db_->Write(options, &batch));
  }

  Status settle() override {
    VMSHADOW_TRY(status_of(db_->Flush({})));
    const auto busy = [&](const char* property) {
      std::uint64_t value = 0;
      return db_->GetIntProperty(property, &value) && value > 0;
    };
    while (busy("rocksdb.compaction-pending") || busy("rocksdb.num-running-compactions") ||
           busy("rocksdb.num-running-flushes")) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return {};
  }

  Status read_image(std::uint32_t vm, Epoch epoch, const PageVisitor& visit) override {
    rocksdb::ReadOptions options;
    options.fill_cache = false;
    options.readahead_size = 4 * kMib;
    const Key end = make_key(vm + 1, 0, Epoch{~std::uint64_t{0}});
    const rocksdb::Slice upper_bound = slice(end);
    options.iterate_upper_bound = &upper_bound;
    const std::unique_ptr<rocksdb::Iterator> it(db_->NewIterator(options));
    std::array<std::byte, kPageBytes> page;
    Key wanted = make_key(vm, 0, epoch);
    for (it->Seek(slice(wanted)); it->Valid();) {
      const std::uint64_t number = get_big_endian(it->key().data() + 4, 8);
      const Epoch found{~get_big_endian(it->key().data() + 12, 8)};
      if (found <= epoch) {
        const int bytes = ::LZ4_decompress_safe(
            it->value().data(), reinterpret_cast<char*>(page.data()),
            static_cast<int>(it->value().size()), static_cast<int>(page.size()));
        if (bytes != static_cast<int>(page.size())) return fail(Errc::corrupt, "RocksDB: a page");
        visit(PageNumber{number}, page.data());
        go_on(*it, make_key(vm, number + 1, epoch));
      } else {
        go_on(*it, make_key(vm, number, epoch));
      }
    }
    return status_of(it->status());
  }

  std::string description() const override {
    return fmt::format(
        "RocksDB {}.{}.{}: no compression (values are lz4 already), write_buffer_size=256M x4, "
        "max_background_jobs=4, direct IO for flush and compaction, target_file_size_base=128M, "
        "max_bytes_for_level_base=1G, recycle_log_file_num=4, enable_pipelined_write, "
        "block_size=16K; WriteOptions.sync=true, one WriteBatch an epoch; reads: one iterator, "
        "readahead_size=4M, Next up to {} older versions, then Seek{}",
        ROCKSDB_MAJOR, ROCKSDB_MINOR, ROCKSDB_PATCH, kStepsBeforeSeek,
        options_.empty() ? std::string() : "; over these: " + options_);
  }

 private:
  /// To the first key from `target` on: by steps while it is near, else by a seek.
  static void go_on(rocksdb::Iterator& it, const Key& target) {
    for (int i = 0; i < kStepsBeforeSeek; ++i) {
      it.Next();
      if (!it.Valid() || it.key().compare(slice(target)) >= 0) return;
    }
    it.Seek(slice(target));
  }

  std::unique_ptr<rocksdb::DB> db_;
  const std::string options_;  ///< besides the tuned ones
};

}  // namespace

PageValues::PageValues(const GroupPool& pool) {
  std::vector<char> scratch(static_cast<std::size_t>(LZ4_compressBound(kPageBytes)));
  for (std::size_t group = 0; group < pool.groups(); ++group) {
    for (std::size_t slot = 0; slot < format::kGroupPagesMax; ++slot) {
      const int bytes = ::LZ4_compress_default(
          reinterpret_cast<const char*>(pool.page(group, slot).data()), scratch.data(),
          static_cast<int>(kPageBytes), static_cast<int>(scratch.size()));
      VMSHADOW_ASSERT(bytes > 0);
      const auto* first = reinterpret_cast<const std::byte*>(scratch.data());
      values_.emplace_back(first, first + bytes);
    }
  }
}

ByteSpan PageValues::value(std::size_t group, std::size_t slot) const {
  return values_[group * format::kGroupPagesMax + slot];
}

Result<std::unique_ptr<RocksdbBaseline>> RocksdbBaseline::open(const std::string& directory,
                                                               const std::string& options) {
  rocksdb::Options wanted;
  const auto parsed = rocksdb::GetOptionsFromString(tuned_options(), options, &wanted);
  if (!parsed.ok()) return fail(Errc::invalid_argument, "--rocksdb-options: " + parsed.ToString());
  rocksdb::DB* db = nullptr;
  VMSHADOW_TRY(status_of(rocksdb::DB::Open(wanted, directory, &db)));
  return std::make_unique<Database>(std::unique_ptr<rocksdb::DB>(db), options);
}

}  // namespace vmshadow::bench
