// session.h to and from attention.proto. Float bits pass unchanged.
#pragma once
#include "common/session/session.h"

namespace consilium::attention::v1 {
class FromAttention;
class Submit;
class Welcome;
}  // namespace consilium::attention::v1

namespace consilium {

void ToProto(const SessionSubmit& submit, attention::v1::Submit* out);
SessionSubmit FromProto(const attention::v1::Submit& in);

void ToProto(const WorkerWelcome& welcome, attention::v1::Welcome* out);
WorkerWelcome FromProto(const attention::v1::Welcome& in);

// Appends, so that what a slow gateway has not read yet goes out as one message; the load is replaced.
void AppendProto(const SessionEvents& events, attention::v1::FromAttention* out);
SessionEvents FromProto(const attention::v1::FromAttention& in);

}  // namespace consilium
