// Calls of operators, so that the first launch of one is known: see wait_for_earlier_launches.
#pragma once

#include <cstdint>

namespace higgs_native::cuda {

// A call of an operator by the thread that makes this object. Operators that it calls in turn are part of the call.
class OperatorCall {
 public:
  // `begin`, if given, numbers the outermost call.
  explicit OperatorCall(uint32_t (*begin)() = nullptr)
      : outer_(current_), outermost_(outer_ ? outer_->outermost_ : this) {
    current_ = this;
    if (!outer_ && begin) number_ = begin();
  }
  ~OperatorCall() { current_ = outer_; }
  OperatorCall(const OperatorCall&) = delete;

  bool has_launched() const { return outermost_->has_launched_; }
  void launches() const { outermost_->has_launched_ = true; }
  uint32_t number() const { return outermost_->number_; }

 private:
  inline static thread_local const OperatorCall* current_ = nullptr;

  const OperatorCall* outer_;
  const OperatorCall* outermost_;
  mutable bool has_launched_ = false;
  uint32_t number_ = 0;
};

}  // namespace higgs_native::cuda
