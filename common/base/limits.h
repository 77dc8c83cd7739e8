// Every bound of the system, with unit and reason. A queue that is not named here should not exist.
#pragma once
#include <cstddef>
#include <cstdint>

namespace consilium {

// Frames (WIRE.md). One MiB keeps a bulk frame below 1 ms on 10 Gb/s, so that lanes stay responsive.
inline constexpr size_t kFrameBytesMax = size_t{1} << 20;
inline constexpr uint32_t kCallRowsMax = 4096;
inline constexpr uint32_t kCallSlotsMax = 16384;
inline constexpr size_t kRejectTextBytesMax = 256;

// KV pages: small enough for useful prefix hits, and a divisor of the attention fold (64 keys).
inline constexpr uint32_t kKvBlockTokens = 16;
inline constexpr uint32_t kAttentionFoldKeys = 64;
// Recurrent states: one is kept for the prefix cache at each multiple of this many tokens (of pages), so that
// a hit computes fewer than these anew. The least slots that let a sequence go on: the state that a flight
// reads and the one it leaves.
inline constexpr uint32_t kStateSnapshotTokens = 256;
inline constexpr uint32_t kStateSlotsMin = 2;

// Micro-batches: rows of one flight, and flights at a time. Rows x top-k x hidden x 4 B bounds the return
// buffers (I1).
inline constexpr uint32_t kFlightRowsMax = 2048;
inline constexpr uint32_t kFlightsMax = 4;

// Expert shard: rows a stream may have waiting there (credits, I2) for each lane.
inline constexpr uint32_t kLaneCreditRows = 16384;
inline constexpr uint64_t kLaneCreditBytes = uint64_t{256} << 20;

// Expert shard: slots of one grouped FFN, unless a single call has more. Bounds scratch memory and the wait
// of a decode call behind a running job.
inline constexpr uint32_t kJobSlotsMax = 4096;
// A bulk call that waited this long goes before decode calls, so that prompts never starve.
inline constexpr int64_t kBulkWaitMaxUs = 20'000;
// Heartbeat on streams with open calls: two fit into the 50 ms of silence after which a router suspects the
// shard.
inline constexpr int64_t kHeartbeatUs = 20'000;
// Rows waiting in one shard over all its streams: eight full lanes; beyond: OVERLOADED.
inline constexpr uint32_t kShardQueuedRowsMax = 131072;
// Events waiting for a shard's core: frames within credit are far fewer.
inline constexpr size_t kShardEventsMax = 1 << 20;
// Bindings of one HELLO, of each sort.
inline constexpr uint32_t kBindingsMax = 4096;
// Results of finished controller commands a shard remembers, to answer a repeated one.
inline constexpr size_t kFinishedOpsMax = 1024;
// A transport takes frames up to the cap plus this much (headers and tables of the largest payload).
inline constexpr size_t kFrameSlackBytes = size_t{64} << 10;
// Streams at the local socket of a shard: two a router, as many as a controller's members.
inline constexpr size_t kLocalStreamsMax = 2 * 4096;
// Frames waiting in a transport's writer; credits bound them long before.
inline constexpr size_t kLinkQueueFramesMax = 65536;

// API.
inline constexpr uint32_t kTopLogprobsMax = 20;  // OpenAI's bound
inline constexpr uint32_t kChoicesMax = 128;     // n and best_of
inline constexpr uint32_t kStopStringsMax = 16;  // OpenAI allows 4; users of vLLM more
inline constexpr size_t kHttpBodyBytesMax = size_t{16} << 20;
inline constexpr size_t kHttpHeaderBytesMax = size_t{64} << 10;

// Requests waiting for KV blocks in one attention worker; beyond: RESOURCE_EXHAUSTED (HTTP 429).
inline constexpr uint32_t kWaitingRequestsMax = 4096;

// Controller: member streams, messages waiting for one that does not read (its stream is ended), and admin
// calls waiting.
inline constexpr uint32_t kControlPeersMax = 4096;
inline constexpr size_t kControlWritesMax = 4096;
inline constexpr size_t kControlCallsMax = 4096;

}  // namespace consilium
