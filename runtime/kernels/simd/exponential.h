// The exponential over one of the classes beside this file. Internal linkage throughout: see
// linear_avx512vnni.cc.
#ifndef QC_KERNELS_SIMD_EXPONENTIAL_H_
#define QC_KERNELS_SIMD_EXPONENTIAL_H_

namespace qc::kernels {
namespace {

// e^x = 2^n * e^r, with the Taylor polynomial of degree 6 on |r| <= ln(2) / 2, whose error is below
// 2^-23. Beyond -87 and 87 the result is the one there, about 1e-38 and 1e38. NaN stays NaN.
template <typename Simd>
typename Simd::Vector exponential(typename Simd::Vector x) {
  x = Simd::max(Simd::set(-87.0f), Simd::min(Simd::set(87.0f), x));
  const auto n = Simd::round(Simd::mul(x, Simd::set(1.44269504f)));
  auto r = Simd::fma(n, Simd::set(-0.693359375f), x);  // ln 2 in two parts
  r = Simd::fma(n, Simd::set(2.12194440e-4f), r);
  auto p = Simd::set(1.0f / 720);
  constexpr float kTerms[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
#pragma GCC unroll 8
  for (const float term : kTerms) p = Simd::fma(p, r, Simd::set(term));
  return Simd::mul(p, Simd::power(n));
}

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_SIMD_EXPONENTIAL_H_
