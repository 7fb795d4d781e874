// A borrowed run of objects, as std::span of C++20 is.
#ifndef YOLACT_DEPLOY_SPAN_HPP
#define YOLACT_DEPLOY_SPAN_HPP

#include <cstddef>
#include <initializer_list>
#include <type_traits>
#include <utility>

namespace yolact {

// Owns nothing: what it was made from has to outlive it. A temporary list, `{view, view}`, lives until the end of the call that it is given to.
template <typename T>
class Span {
public:
    constexpr Span() noexcept = default;
    constexpr Span(T *data, std::size_t size) noexcept : data_(data), size_(size) {}
    constexpr Span(std::initializer_list<std::remove_const_t<T>> list) noexcept : size_(list.size()) { data_ = list.begin(); }
    template <std::size_t N>
    constexpr Span(T (&array)[N]) noexcept : data_(array), size_(N) {}  // NOLINT: converts, as std::span
    template <std::size_t N, typename Plain = std::remove_const_t<T>, typename = std::enable_if_t<!std::is_same_v<Plain, T>>>
    constexpr Span(Plain (&array)[N]) noexcept : data_(array), size_(N) {}  // NOLINT: converts, as std::span
    // Vectors, arrays and whatever else has data() and size().
    template <typename Container, typename = std::enable_if_t<std::is_convertible_v<decltype(std::declval<Container &>().data()), T *>>>
    constexpr Span(Container &&container) noexcept : data_(container.data()), size_(container.size()) {}  // NOLINT: converts, as std::span

    constexpr T *data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    constexpr bool empty() const noexcept { return size_ == 0; }
    constexpr T *begin() const noexcept { return data_; }
    constexpr T *end() const noexcept { return data_ + size_; }
    constexpr T &operator[](std::size_t index) const noexcept { return data_[index]; }
    constexpr Span first(std::size_t count) const noexcept { return Span(data_, count < size_ ? count : size_); }

private:
    T *data_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace yolact

#endif
