// The exponential and the hyperbolic tangent over one of the classes beside this file. Internal
// linkage throughout: see linear_avx512vnni.cc.
#ifndef QC_KERNELS_SIMD_EXPONENTIAL_H_
#define QC_KERNELS_SIMD_EXPONENTIAL_H_

namespace qc::kernels {
namespace {

// x = n * ln(2) + r, with a whole n and |r| <= ln(2) / 2. Beyond -limit and limit they are of
// those. NaN stays NaN.
template <typename Simd>
struct Reduced {
  typename Simd::Vector n, r;

  Reduced(typename Simd::Vector x, float limit) {
    x = Simd::max(Simd::set(-limit), Simd::min(Simd::set(limit), x));
    n = Simd::round(Simd::mul(x, Simd::set(1.44269504f)));
    r = Simd::fma(n, Simd::set(-0.693359375f), x);  // ln 2 in two parts
    r = Simd::fma(n, Simd::set(2.12194440e-4f), r);
  }
};

// The polynomial in x with these terms, of the highest degree first.
template <typename Simd, int kCount>
typename Simd::Vector polynomial(const float (&terms)[kCount], typename Simd::Vector x) {
  auto p = Simd::set(terms[0]);
#pragma GCC unroll 8
  for (int i = 1; i < kCount; ++i) p = Simd::fma(p, x, Simd::set(terms[i]));
  return p;
}

// e^x = 2^n * e^r, with the Taylor polynomial of degree 6, whose error is below 2^-23. Beyond -87
// and 87 the result is the one there, about 1e-38 and 1e38.
template <typename Simd>
typename Simd::Vector exponential(typename Simd::Vector x) {
  constexpr float kTerms[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  const Reduced<Simd> x_by(x, 87.0f);
  return Simd::mul(polynomial<Simd>(kTerms, x_by.r), Simd::power(x_by.n));
}

// tanh x = m / (m + 2) with m = e^(2x) - 1 = 2^n * (e^r - 1) + (2^n - 1), so that nothing cancels
// near zero. The error is below 4 * 2^-24 of the result.
template <typename Simd>
typename Simd::Vector hyperbolic_tangent(typename Simd::Vector x) {
  constexpr float kTerms[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24,
                              1.0f / 6,    0.5f,       1.0f};  // of (e^r - 1) / r
  const Reduced<Simd> twice(Simd::add(x, x), 20.0f);           // there it is 1
  const auto factor = Simd::power(twice.n);
  const auto m = Simd::fma(factor, Simd::mul(polynomial<Simd>(kTerms, twice.r), twice.r),
                           Simd::sub(factor, Simd::set(1.0f)));
  return Simd::div(m, Simd::add(m, Simd::set(2.0f)));
}

}  // namespace
}  // namespace qc::kernels

#endif  // QC_KERNELS_SIMD_EXPONENTIAL_H_
