// What `mx.export_to_dot` writes when this is loaded before MLX: the graph as lines that benchmarks/traffic.py
// reads, with the shapes that MLX's own export leaves out.
//   array ID BYTES SHAPE…        a line for each array
//   STATE… | ID… | ID… | NAME          and for each primitive: inputs, outputs, its name
#include <ostream>
#include <unordered_set>
#include <vector>

#include "mlx/graph_utils.h"
#include "mlx/primitives.h"

namespace mlx::core {

namespace {

std::vector<int> state(const Primitive& p, const std::string& name) {
  // What is needed to follow views: axes, or steps of slices.
  if (name == "Transpose") return static_cast<const Transpose&>(p).state();
  if (name == "ExpandDims") return static_cast<const ExpandDims&>(p).state();
  if (name == "Squeeze") return static_cast<const Squeeze&>(p).state();
  if (name == "Slice") {
    auto steps = std::get<2>(static_cast<const Slice&>(p).state());
    return {steps.begin(), steps.end()};
  }
  return {};
}

struct Printer {
  std::ostream& os;
  std::unordered_set<std::uintptr_t> arrays, seen;

  void describe(const array& a) {
    if (!arrays.insert(a.id()).second) return;
    os << "array " << a.id() << ' ' << a.itemsize();
    for (auto n : a.shape()) os << ' ' << n;
    os << '\n';
  }

  void visit(const array& a) {
    if (!seen.insert(a.id()).second) return;
    describe(a);
    if (!a.has_primitive()) return;
    for (auto& other : a.siblings()) seen.insert(other.id()), describe(other);
    for (auto& in : a.inputs()) visit(in);
    std::string name = a.primitive().name();
    for (auto n : state(a.primitive(), name)) os << n << ' ';
    os << '|';
    for (auto& in : a.inputs()) os << ' ' << in.id();
    os << " |";
    os << ' ' << a.id();
    for (auto& other : a.siblings()) os << ' ' << other.id();
    os << " | " << name << '\n';
  }
};

} // namespace

MLX_API void export_to_dot(std::ostream& os, NodeNamer, const std::vector<array>& nodes) {
  Printer printer{os};
  for (auto& a : nodes) printer.visit(a);
}

} // namespace mlx::core
