#include "app/store_metrics.h"

#include "app/metrics_page.h"

namespace vmshadow::app {
namespace {

double number(std::uint64_t count) { return static_cast<double>(count); }

void add_commits(MetricsPage& page, const store::StoreStats& stats) {
  page.gauge("vmshadow_store_sessions", "Sidecars that are connected and may append epochs.",
             number(stats.sessions));
  page.counter("vmshadow_store_epochs_committed_total", "Epochs made durable since the start.",
               number(stats.commits.count()));
  page.counter("vmshadow_store_epochs_refused_total",
               "Epochs that arrived whole and were not taken: no room, a failed disk, not valid.",
               number(stats.refused_epochs));
  page.histogram("vmshadow_store_commit_seconds",
                 "From an epoch's last record until it is durable.", stats.commits);
  page.gauge("vmshadow_store_poisoned",
             "1 once a write or sync has failed: nothing is taken until the store is started anew.",
             stats.poisoned ? 1 : 0);
  page.gauge("vmshadow_store_queue_bytes", "Records that wait to be written.",
             number(stats.queued_bytes));
  page.gauge("vmshadow_store_spare_bytes", "Memory kept for the next records.",
             number(stats.kept_memory_bytes));
  page.counter("vmshadow_store_ingested_bytes_total", "Bytes of records taken from sidecars.",
               number(stats.ingested_bytes));
  page.counter("vmshadow_store_written_bytes_total", "All bytes written to segments.",
               number(stats.written_bytes));
  page.counter("vmshadow_store_moved_bytes_total",
               "Of those, bytes written by draining, compaction and moves between tiers.",
               number(stats.moved_bytes));
  page.counter("vmshadow_store_removed_bytes_total",
               "Bytes of segments that retention and compaction have let go.",
               number(stats.removed_bytes));
}

void add_contents(MetricsPage& page, const store::StoreStats& stats) {
  page.gauge("vmshadow_store_vms", "VMs that the store knows.", number(stats.vms.size()));
  for (const store::VmStats& vm : stats.vms) {
    const MetricsPage::Labels labels = {{"vm", vm.name}};
    page.gauge("vmshadow_store_vm_epochs", "Epochs kept of the VM.", number(vm.epochs), labels);
    page.gauge("vmshadow_store_vm_bytes", "Bytes of records that those epochs need.",
               number(vm.live_bytes), labels);
    page.gauge("vmshadow_store_vm_quota_bytes", "What they may take; 0: any amount.",
               number(vm.quota_bytes), labels);
    if (vm.newest_cut_ns == 0) continue;
    page.gauge("vmshadow_store_vm_newest_cut_timestamp_seconds",
               "When the newest of them was cut, in seconds since 1970 by the primary's clock.",
               static_cast<double>(vm.newest_cut_ns) / 1e9, labels);
  }
  page.gauge("vmshadow_store_page_versions", "Data pages that the index knows.",
             number(stats.page_versions));
  page.gauge("vmshadow_store_index_bytes", "Memory of the index.", number(stats.index_bytes));
  const char* const segments_help = "Segment files.";
  page.gauge("vmshadow_store_segments", segments_help, number(stats.journal_segments),
             {{"kind", "journal"}});
  page.gauge("vmshadow_store_segments", segments_help, number(stats.archive_segments),
             {{"kind", "archive"}});
}

void add_tiers(MetricsPage& page, const store::StoreStats& stats) {
  for (const store::TierStats& tier : stats.tiers) {
    const MetricsPage::Labels labels = {{"tier", tier.name}};
    page.gauge("vmshadow_store_tier_stored_bytes", "Bytes of the tier's segment files.",
               number(tier.stored_bytes), labels);
    page.gauge("vmshadow_store_tier_live_bytes",
               "Of those, bytes of records that a kept epoch needs.", number(tier.live_bytes),
               labels);
    page.gauge("vmshadow_store_tier_spare_bytes",
               "Bytes of files kept for the next segments; not of the stored ones.",
               number(tier.spare_bytes), labels);
    page.gauge("vmshadow_store_tier_free_bytes",
               "What the tier may still take; directories on one file system each count its room.",
               number(tier.free_bytes), labels);
    page.gauge("vmshadow_store_tier_capacity_bytes",
               "What the tier may take in all; 0: what its file systems have.",
               number(tier.capacity_bytes), labels);
    page.counter("vmshadow_store_tier_read_bytes_total",
                 "Bytes read for restores, exports and sidecars.", number(tier.read_bytes), labels);
  }
}

void add_health(MetricsPage& page, const store::StoreStats& stats, std::size_t damaged_places) {
  page.counter("vmshadow_store_scrubbed_bytes_total", "Bytes read again and checked.",
               number(stats.scrubbed_bytes));
  page.counter("vmshadow_store_scrub_rounds_total", "How often all of the store was checked.",
               number(stats.scrub_rounds));
  page.gauge("vmshadow_store_damaged_places",
             "Places found damaged when the store was opened and since; the log names each.",
             number(damaged_places));
  const char* const pages_help =
      "Pages of damaged groups that were rewritten: salvaged (whole all the same), repaired (from "
      "another copy), lost.";
  page.counter("vmshadow_store_damaged_pages_total", pages_help, number(stats.salvaged_pages),
               {{"fate", "salvaged"}});
  page.counter("vmshadow_store_damaged_pages_total", pages_help, number(stats.repaired_pages),
               {{"fate", "repaired"}});
  page.counter("vmshadow_store_damaged_pages_total", pages_help, number(stats.lost_pages),
               {{"fate", "lost"}});
}

}  // namespace

std::string store_metrics(const store::StoreStats& stats, std::size_t damaged_places,
                          const Clock& clock) {
  MetricsPage page;
  page.gauge("vmshadow_build_info", "1; the program's version is a label.", 1,
             {{"program", "vmshadow-store"}, {"version", VMSHADOW_VERSION}});
  page.as_of(clock.wall());
  add_commits(page, stats);
  add_contents(page, stats);
  add_tiers(page, stats);
  add_health(page, stats, damaged_places);
  return page.text();
}

std::string store_metrics(const store::Store& store, const Clock& clock) {
  return store_metrics(store.stats(), store.damage().size(), clock);
}

}  // namespace vmshadow::app
