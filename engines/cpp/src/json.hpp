// Reading JSON (RFC 8259), as far as Python's json.loads does: NaN and Infinity are numbers, of equal keys the last one counts.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace yolact::detail {

// A document or a value that is not what was wanted; the reason in a few words.
class JsonError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

class Json {
public:
    enum class Kind { null, boolean, number, string, array, object };

    // Throws JsonError. Values may be nested 200 deep.
    static Json parse(const std::string &text);

    Kind kind() const noexcept { return kind_; }
    bool is(Kind kind) const noexcept { return kind_ == kind; }

    // These throw JsonError, which names `what`, where the value is of another kind; whole numbers must be written as such and fit.
    bool boolean(const std::string &what) const;
    double number(const std::string &what) const;
    std::int64_t integer(const std::string &what) const;
    const std::string &string(const std::string &what) const;
    const std::vector<Json> &array(const std::string &what) const;
    const std::map<std::string, Json> &object(const std::string &what) const;

    // The member `name` of an object.
    const Json &at(const std::string &name) const;
    const Json *find(const std::string &name) const noexcept;

private:
    friend class JsonReader;
    void want(Kind kind, const std::string &what) const;

    Kind kind_ = Kind::null;
    bool boolean_ = false;
    double number_ = 0;
    std::optional<std::int64_t> integer_;
    std::string string_;
    std::vector<Json> array_;
    std::map<std::string, Json> object_;
};

}  // namespace yolact::detail
