// Who runs this step: requests join and leave at any time; each step packs one token of every running request and
// chunks of waiting prompts into one forward pass.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model/model.h"
#include "runtime/prefix_cache.h"
#include "runtime/processors.h"
#include "runtime/prompt_lookup.h"
#include "runtime/sampler.h"

namespace lfm {

struct RequestParams {
  SamplingParams sampling;
  ProcessorParams processors;
  int64_t max_new_tokens = 1;
  std::vector<int32_t> eos_token_ids;
  // Tokens that are drafted by prompt lookup and verified in one pass at most; 0: none. It changes no result: a token
  // is kept where the request would have chosen it from the same logits with the same random number.
  int64_t speculation = 0;
};

// What a caller may look at and change before a token is chosen: the model's logits, those that the processors made of
// them, and at last what the token was chosen from (see Sampler::write_scores; a change has no effect any more).
enum class LogitsStage : uint8_t { raw, processed, scores };
constexpr int kLogitsStages = 3;

// row[vocab] lies in `owner`, which a hook may keep; later steps then take other memory. A std::runtime_error ends the
// request with FinishReason::error. A hook must not call the scheduler.
using LogitsHook = std::function<void(std::span<float> row, const std::shared_ptr<Buffer<float>>& owner)>;

// error: this request cannot go on (NaN logits); the others do.
enum class FinishReason : uint8_t { none, stop, length, error };

struct StepEvent {
  int64_t request;
  int32_t token;  // -1 with FinishReason::error
  FinishReason finish;
  std::string error;
};

// Not thread-safe: one thread at a time. Several schedulers may share a model.
class Scheduler {
 public:
  // chunk: prompt tokens of one step at most. cache: of the same model; may be null. With a cache, a request that
  // begins like another one whose prompt is being computed waits for that, so that a shared prefix is computed once.
  Scheduler(std::shared_ptr<const Model> model, int64_t chunk, std::shared_ptr<PrefixCache> cache = nullptr);

  // Returns the request's id. Throws std::invalid_argument for a bad prompt or parameter.
  int64_t add(std::vector<int32_t> prompt, const RequestParams& params);
  void cancel(int64_t request);  // unknown or finished: ignored
  bool idle() const { return requests_.empty(); }

  // Appends tokens that need no sampling to a running request; they are computed together with its next step. They
  // count as generated: those after an end-of-sequence token or beyond max_new_tokens are dropped and the request ends.
  // Returns one event for each token taken. Throws std::invalid_argument for a request that is not running.
  std::vector<StepEvent> append(int64_t request, std::span<const int32_t> tokens);

  // From now on only tokens whose bit is set can be sampled for this request; nullptr: any. One bit per token,
  // ceil(vocab / 32) words, low bit first; read at each step, so the caller keeps the words alive and may change them
  // between steps. Throws std::invalid_argument for a request that is not running.
  void set_mask(int64_t request, const uint32_t* words);

  // Calls `hook` at this stage of each token of this request that is sampled; empty: none. With normalize_scores, the
  // scores are log-probabilities. Throws std::invalid_argument for a request that is not running.
  void set_hook(int64_t request, LogitsStage stage, LogitsHook hook);
  void set_normalize_scores(int64_t request, bool normalize);

  // The request, of which nothing is computed yet, goes on from the longest prefix that its prompt shares with `state`
  // (all but the last token, whose logits it needs), and its state is kept when it ends. Throws std::invalid_argument
  // for a request that is not running or has begun, or a state of another model.
  void use_state(int64_t request, const SequenceState& state);

  // The state of a request with use_state that ended, to be taken once. It may lack the last tokens. Throws
  // std::invalid_argument where there is none.
  SequenceState take_state(int64_t request);

  // At most one forward pass, and at most one token of each request, in the order in which they were added. Tokens for
  // which a verified draft has the logits already come first, without a pass.
  std::vector<StepEvent> step();

  // Of all requests so far: tokens that were drafted, and those of them that came.
  int64_t drafted_tokens() const { return drafted_tokens_; }
  int64_t accepted_tokens() const { return accepted_tokens_; }
  int64_t passes() const { return passes_; }  // forward passes

 private:
  struct Request {
    int64_t id;
    std::vector<int32_t> tokens;  // prompt, then generated
    int64_t prompt_length;
    int64_t processed = 0;  // tokens that the state holds
    RequestParams params;
    LogitsProcessors processors;
    Sampler sampler;
    SequenceState state;
    const uint32_t* mask = nullptr;  // not owned
    std::array<LogitsHook, kLogitsStages> hooks = {};
    bool normalize_scores = false;
    bool keep_state = false;
    bool begun = false;     // took what the cache has
    bool followed = false;  // others wait for what it computes
    bool tapped = false;    // its state may be what taps made of it: not for other requests
    // Speculation: the last pass computed `draft` after the first draft_begin tokens, with the logits after each.
    PromptLookup lookup{0};
    std::vector<int32_t> draft = {}, pending = {};
    int64_t draft_begin = 0;
    float* rows = nullptr;  // [draft + 1, vocab], in logits_
    ConvHistory history = {};

    bool hooked() const;
    int64_t agreed() const;  // tokens of the draft that came
  };

  // The token of a row of logits, or why there is none.
  struct Choice {
    int32_t token;
    std::exception_ptr error;
  };

  bool begin(Request& request, std::vector<Request*>& prefilling);
  void propose(Request& request, int64_t limit);
  void settle(Request& request);
  std::vector<StepEvent> sample_verified();
  Choice choose(Request& request, float* row) noexcept;
  StepEvent next(Request& request, const Choice& choice);
  Request& running(int64_t request);
  int32_t sample(Request& r, std::span<float> row);
  StepEvent take(Request& r, int32_t token);
  void drop_finished(std::span<const StepEvent> events);

  std::shared_ptr<const Model> model_;
  int64_t chunk_;
  std::shared_ptr<PrefixCache> cache_;
  int64_t next_id_ = 0;
  int64_t drafted_tokens_ = 0, accepted_tokens_ = 0, passes_ = 0;
  std::deque<std::unique_ptr<Request>> requests_;
  std::map<int64_t, SequenceState> kept_;  // of requests that ended
  Workspace ws_;
  std::shared_ptr<Buffer<float>> logits_ = std::make_shared<Buffer<float>>();  // shared with what hooks keep
};

}  // namespace lfm
