// Words for messages.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace yolact::detail {

// 1234567 as "1,234,567".
std::string with_commas(std::uint64_t number);

std::string joined(const std::vector<std::string> &parts, const std::string &between = ", ");

// "[2, 3]".
std::string shape_text(const std::vector<std::int64_t> &shape);

std::string hexadecimal(std::uint64_t number);

// As Python prints a float: the fewest digits that give the same number again, with an exponent below 1e-4 and from 1e16 on.
std::string python_float(double number);

// The text as JSON, with its quotes; what is no ASCII is escaped, as Python's json.dumps does.
std::string json_string(const std::string &utf8);

}  // namespace yolact::detail
