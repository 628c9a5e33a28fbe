#include "runtime/scheduler.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/parallel.h"

namespace lfm {

Scheduler::Scheduler(std::shared_ptr<const Model> model, int64_t chunk, std::shared_ptr<PrefixCache> cache)
    : model_(std::move(model)), chunk_(chunk), cache_(std::move(cache)) {
  check(cache_ == nullptr || &cache_->layout() == &model_->new_state().layout(),
        "the prefix cache belongs to another model");
  check(chunk >= 1, "prefill_chunk must be >= 1, not ", chunk);
}

int64_t Scheduler::add(std::vector<int32_t> prompt, const RequestParams& params) {
  const ModelConfig& config = model_->config();
  model_->check_tokens(prompt);
  check(params.max_new_tokens >= 1, "max_new_tokens must be >= 1, not ", params.max_new_tokens);
  check(params.max_new_tokens <= config.max_position_embeddings, "max_new_tokens = ", params.max_new_tokens,
        " is more than the model's context of ", config.max_position_embeddings);
  // The last new token is never fed back, hence the 1.
  const int64_t length = static_cast<int64_t>(prompt.size()) + params.max_new_tokens - 1;
  check(static_cast<int64_t>(prompt.size()) <= config.max_position_embeddings, "the prompt has ", prompt.size(),
        " tokens, more than the model's context of ", config.max_position_embeddings);
  check(length <= config.max_position_embeddings, "prompt and max_new_tokens need ", length,
        " positions, more than the model's context of ", config.max_position_embeddings);
  for (const int32_t token : params.eos_token_ids) {
    check(token >= 0 && token < config.vocab_size, "eos_token_id ", token, " is outside the vocabulary of ",
          config.vocab_size);
  }
  check(params.speculation >= 0, "speculation must not be negative, not ", params.speculation);
  params.processors.validate(config.vocab_size);
  const auto prompt_length = static_cast<int64_t>(prompt.size());
  requests_.push_back(std::unique_ptr<Request>(new Request{next_id_, std::move(prompt), prompt_length, 0, params,
                                                           LogitsProcessors(params.processors),
                                                           Sampler(params.sampling), model_->new_state()}));
  requests_.back()->lookup = PromptLookup(params.speculation);
  return next_id_++;
}

void Scheduler::cancel(int64_t request) {
  const auto found = std::find_if(requests_.begin(), requests_.end(), [&](const auto& r) { return r->id == request; });
  if (found == requests_.end()) return;
  settle(**found);
  if (cache_ && !(*found)->tapped) cache_->insert((*found)->state);
  if ((*found)->keep_state) kept_.insert_or_assign(request, std::move((*found)->state));
  requests_.erase(found);
}

void Scheduler::use_state(int64_t request, const SequenceState& state) {
  Request& r = running(request);
  check(&state.layout() == &r.state.layout(), "the state belongs to another model");
  check(r.processed == 0, "request ", request, " has begun");
  SequenceState prefix = state;
  prefix.truncate(std::min(state.common_prefix(r.tokens), r.prompt_length - 1));
  r.state = std::move(prefix);
  r.processed = r.state.length();
  r.keep_state = true;
}

SequenceState Scheduler::take_state(int64_t request) {
  auto kept = kept_.extract(request);
  check(!kept.empty(), "request ", request, " has no state to take");
  return std::move(kept.mapped());
}

Scheduler::Request& Scheduler::running(int64_t request) {
  const auto found = std::find_if(requests_.begin(), requests_.end(), [&](const auto& r) { return r->id == request; });
  check(found != requests_.end(), "request ", request, " is not running");
  return **found;
}

StepEvent Scheduler::take(Request& r, int32_t token) {
  r.tokens.push_back(token);
  const std::span<const int32_t> eos = r.params.eos_token_ids;
  FinishReason finish = FinishReason::none;
  if (std::find(eos.begin(), eos.end(), token) != eos.end()) {
    finish = FinishReason::stop;
  } else if (static_cast<int64_t>(r.tokens.size()) - r.prompt_length >= r.params.max_new_tokens) {
    finish = FinishReason::length;
  }
  return {r.id, token, finish, {}};
}

void Scheduler::drop_finished(std::span<const StepEvent> events) {
  for (const StepEvent& event : events) {
    if (event.finish != FinishReason::none) cancel(event.request);
  }
}

std::vector<StepEvent> Scheduler::append(int64_t request, std::span<const int32_t> tokens) {
  Request& r = running(request);
  std::vector<StepEvent> events;
  if (tokens.empty()) return events;
  model_->check_tokens(tokens);
  for (const int32_t token : tokens) {
    events.push_back(take(r, token));
    if (events.back().finish != FinishReason::none) break;
  }
  drop_finished(events);
  return events;
}

void Scheduler::set_mask(int64_t request, const uint32_t* words) { running(request).mask = words; }

void Scheduler::set_hook(int64_t request, LogitsStage stage, LogitsHook hook) {
  running(request).hooks[static_cast<size_t>(stage)] = std::move(hook);
}

void Scheduler::set_normalize_scores(int64_t request, bool normalize) { running(request).normalize_scores = normalize; }

int32_t Scheduler::sample(Request& r, std::span<float> row) {
  const auto call_hook = [&](LogitsStage stage) {
    const LogitsHook& hook = r.hooks[static_cast<size_t>(stage)];
    if (hook) hook(row, logits_);
    return static_cast<bool>(hook);
  };
  const auto generated = static_cast<int64_t>(r.tokens.size()) - r.prompt_length;
  call_hook(LogitsStage::raw);
  r.processors.apply(
      row, {r.tokens, r.prompt_length, generated + 1 == r.params.max_new_tokens, r.params.eos_token_ids, r.mask});
  // What the mask forbids stays so, whatever the hook does.
  if (call_hook(LogitsStage::processed) && r.mask != nullptr) apply_mask(row, r.mask);
  const int32_t token = r.sampler.sample(row, r.tokens.size());
  if (r.hooks[static_cast<size_t>(LogitsStage::scores)]) {
    r.sampler.write_scores(row, r.normalize_scores);
    call_hook(LogitsStage::scores);
  }
  return token;
}

// What the cache has of a request's prompt becomes its state. False: it waits for another one that is about to compute
// more of it.
bool Scheduler::begin(Request& r, std::vector<Request*>& prefilling) {
  if (r.begun || r.tapped || cache_ == nullptr || cache_->max_bytes() == 0) return true;
  constexpr int64_t kWorthwhile = 16;  // tokens saved, for which it is good to share a page that will be copied
  // The last token's logits are needed.
  const auto prompt = std::span<const int32_t>(r.tokens).first(static_cast<size_t>(r.prompt_length - 1));
  const int64_t cached = cache_->match(prompt);
  const auto saved = [&](int64_t length) { return length - std::min(length, r.state.layout().conv_reach); };
  const int64_t known = std::max({r.processed, saved(cached)});
  for (Request* other : prefilling) {
    const auto theirs = std::span<const int32_t>(other->tokens).first(static_cast<size_t>(other->prompt_length));
    const auto same = std::mismatch(prompt.begin(), prompt.end(), theirs.begin(), theirs.end()).first - prompt.begin();
    if (saved(same) - known >= kWorthwhile) {
      other->followed = true;
      return false;
    }
  }
  if (saved(cached) - r.processed >= kWorthwhile) {
    r.state = cache_->find(prompt);
    r.processed = r.state.length();
  }
  r.begun = true;
  prefilling.push_back(&r);
  return true;
}

bool Scheduler::Request::hooked() const {
  return std::ranges::any_of(hooks, [](const LogitsHook& hook) { return static_cast<bool>(hook); });
}

int64_t Scheduler::Request::agreed() const {
  const auto came = std::span(tokens).subspan(static_cast<size_t>(draft_begin));
  return std::mismatch(draft.begin(), draft.end(), came.begin(), came.end()).first - draft.begin();
}

// Drafts at most `limit` tokens for the next pass.
void Scheduler::propose(Request& r, int64_t limit) {
  const auto total = static_cast<int64_t>(r.tokens.size());
  // The pass gives one token more than are drafted.
  limit = std::min(limit, r.prompt_length + r.params.max_new_tokens - total - 1);
  r.draft = r.lookup.draft(r.tokens, limit);
  if (r.draft.empty()) return;
  const auto first = static_cast<uint32_t>(r.draft[0]);
  if (r.mask != nullptr && (r.mask[first / 32] >> (first % 32) & 1) == 0) {
    r.draft.clear();
    return;
  }
  r.draft_begin = total;
  r.pending.assign(r.tokens.begin() + r.processed, r.tokens.end());
  r.pending.insert(r.pending.end(), r.draft.begin(), r.draft.end());
}

// Takes back what was computed of a draft and did not come.
void Scheduler::settle(Request& r) {
  if (r.rows == nullptr) r.draft.clear();  // the pass failed
  if (r.draft.empty()) return;
  const int64_t accepted = r.agreed();
  const auto drafted = static_cast<int64_t>(r.draft.size());
  drafted_tokens_ += drafted;
  accepted_tokens_ += accepted;
  r.lookup.verified(drafted, accepted);
  r.state.truncate(r.draft_begin + accepted, r.history);
  r.processed = r.state.length();
  r.draft.clear();
  r.rows = nullptr;
}

// Tokens whose logits the last pass computed with a draft, as far as it came.
std::vector<StepEvent> Scheduler::sample_verified() {
  std::vector<StepEvent> events;
  for (const auto& r : requests_) {
    if (r->rows == nullptr) continue;
    const int64_t agreed = r->agreed();
    if (r->draft_begin + agreed != static_cast<int64_t>(r->tokens.size())) continue;
    events.push_back(next(*r, choose(*r, r->rows + agreed * model_->config().vocab_size)));
  }
  return events;
}

Scheduler::Choice Scheduler::choose(Request& r, float* row) noexcept {
  try {
    return {sample(r, {row, static_cast<size_t>(model_->config().vocab_size)}), nullptr};
  } catch (...) {
    return {-1, std::current_exception()};
  }
}

StepEvent Scheduler::next(Request& r, const Choice& choice) {
  try {
    if (choice.error) std::rethrow_exception(choice.error);
    return take(r, choice.token);
  } catch (const std::runtime_error& error) {
    return {r.id, -1, FinishReason::error, error.what()};
  }
}

std::vector<StepEvent> Scheduler::step() {
  if (std::vector<StepEvent> events = sample_verified(); !events.empty()) {
    drop_finished(events);
    return events;
  }
  const bool tapped = model_->taps() != nullptr;
  for (const auto& r : requests_) {
    settle(*r);
    r->tapped |= tapped;
  }
  // A pass of a few tokens takes little longer than one of a single token, if that many.
  constexpr int64_t kFew = 16;
  const int64_t draft_limit = kFew / std::max<int64_t>(1, static_cast<int64_t>(requests_.size())) - 1;

  // Every decoding request gets its one token; prompts and appended tokens share what the chunk has room for, first
  // come first served.
  std::vector<Request*> running, prefilling;
  std::vector<SequenceInput> inputs;
  for (const auto& r : requests_) {
    if (r->begun && r->processed < r->prompt_length) prefilling.push_back(r.get());
  }
  int64_t room = chunk_;
  for (const auto& r : requests_) {
    const auto total = static_cast<int64_t>(r->tokens.size());
    const bool decoding = total > r->prompt_length && total - r->processed == 1;
    if (!decoding && (room <= 0 || !begin(*r, prefilling))) continue;
    const int64_t count = decoding ? 1 : std::min(room, total - r->processed);
    if (count == 0) continue;
    if (!decoding) room -= count + r->state.replay();
    const bool last = r->processed + count == total;
    running.push_back(r.get());
    if (total > r->prompt_length && last && !tapped) propose(*r, draft_limit);
    if (!r->draft.empty()) {
      inputs.push_back(
          {&r->state, r->pending, LogitsFor::last, nullptr, static_cast<int64_t>(r->draft.size()) + 1, &r->history});
      continue;
    }
    // Logits that a mask rules out are not computed, unless somebody wants to see them.
    const bool seen =
        r->hooks[static_cast<size_t>(LogitsStage::raw)] || r->hooks[static_cast<size_t>(LogitsStage::processed)];
    inputs.push_back({&r->state,
                      std::span(r->tokens).subspan(static_cast<size_t>(r->processed), static_cast<size_t>(count)),
                      last ? LogitsFor::last : LogitsFor::none, seen ? nullptr : r->mask});
  }
  const int64_t vocab = model_->config().vocab_size;
  if (logits_.use_count() > 1) logits_ = std::make_shared<Buffer<float>>();
  float* logits = logits_->ensure(static_cast<size_t>(num_logit_rows(inputs) * vocab));
  model_->forward(inputs, logits, ws_);
  ++passes_;

  std::vector<Request*> sampling;
  std::vector<float*> rows;
  for (size_t i = 0; i < running.size(); ++i) {
    Request& r = *running[i];
    r.processed += static_cast<int64_t>(inputs[i].tokens.size());
    if (std::exchange(r.followed, false) && !r.tapped) cache_->insert(r.state);
    if (inputs[i].logits_for == LogitsFor::none) continue;
    if (!r.draft.empty()) r.rows = logits;
    sampling.push_back(&r);
    rows.push_back(logits);
    logits += inputs[i].last_rows * vocab;
  }

  // Side by side, but for hooks, which may be Python.
  std::vector<Choice> choices(sampling.size());
  {
    const ThreadScope threads(model_->num_threads());
    parallel_for_dynamic(static_cast<int64_t>(sampling.size()), 1, [&](int64_t i) {
      const auto at = static_cast<size_t>(i);
      if (!sampling[at]->hooked()) choices[at] = choose(*sampling[at], rows[at]);
    });
  }
  std::vector<StepEvent> events;
  for (size_t i = 0; i < sampling.size(); ++i) {
    Request& r = *sampling[i];
    events.push_back(next(r, r.hooked() ? choose(r, rows[i]) : choices[i]));
  }
  drop_finished(events);
  return events;
}

}  // namespace lfm
