"""Chinese: numbers read aloud, punctuation to commas, then pinyin with tone digits."""

from __future__ import annotations

import re
from collections.abc import Callable

DIGITS = "零一二三四五六七八九"
# Power of ten → unit. Above 亿 every unit is ten thousand times the one before.
UNITS = dict(enumerate("十百千万", start=1)) | {
    8 + 4 * step: unit for step, unit in enumerate("亿兆京垓秭穰沟涧正载")
}
_LONGEST = 300  # digits
_POWER = {unit: power for power, unit in UNITS.items()}


def read_digits(number: str) -> str:
    """`2024` → `二零二四`; anything that is not a digit falls away."""
    return "".join(DIGITS[int(digit)] for digit in number if digit.isdecimal())


def _read_whole(number: str) -> str:
    """Positional reading: `1050` → `一千零五十`. One 零 stands for any run of zeros."""
    significant = number.lstrip("0")
    if not significant:
        return ""
    if len(significant) == 1:
        return ("零" if len(number) > 1 else "") + DIGITS[int(significant)]
    power = max(power for power in UNITS if power < len(significant))
    return _read_whole(number[:-power]) + UNITS[power] + _read_whole(significant[-power:])


def _two_as_liang(reading: str) -> str:
    """两 for a 二 that counts hundreds and more: `二百二十二` → `两百二十二`."""
    spoken = list(reading)
    for index, sign in enumerate(reading[:-1]):
        before = reading[index - 1] if index else None
        counts_units = _POWER.get(reading[index + 1], 1) > 1
        begins_group = before is None or _POWER.get(before, 1) > 1
        if sign == "二" and counts_units and begins_group:
            spoken[index] = "两"
    return "".join(spoken)


def read_number(number: str) -> str:
    """`200.5` → `两百点五`, `12` → `十二`. Beyond all units the digits are spelled out."""
    if len(number) > _LONGEST:
        return read_digits(number)
    whole, _, decimals = number.partition(".")
    reading = _read_whole(whole) if len(whole) > 1 else read_digits(whole)
    if decimals:
        reading += "点" + read_digits(decimals)
    reading = _two_as_liang(reading)
    if reading.startswith("点"):
        return "零" + reading
    return reading.removeprefix("一") if reading.startswith("一十") else reading


def _read_inside(text: str) -> str:
    """Every number inside `text` read positionally."""
    for match in _NUMBER.finditer(text):
        text = text.replace(match[0], read_number(match[0]))
    return text


def _read_date(date: str) -> str:
    year, has_year, rest = date.rpartition("年")
    month, has_month, day = rest.partition("月")
    spoken = read_digits(year) + has_year
    if has_month:
        spoken += read_number(month) + has_month
    return spoken + (read_number(day[:-1]) + day[-1] if day else "")


def _read_fraction(fraction: str) -> str:
    over, under = fraction.split("/")
    return read_number(under) + "分之" + read_number(over)


_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_YEAR = r"(?:[089]\d|(?:19|20)\d{2})年"
_DAY = r"\d{1,2}月(?:\d{1,2}[日号])?"
_TENS = "(?:亿|千万|百万|万|千|百)"
_MONEY_UNIT = f"(?:{_TENS}|{_TENS}?元|{_TENS}?块|角|毛|分)"
# Measure words: the number before one is an amount, whatever its length.
_MEASURE = "".join(
    "丈世丘丝两个丸代令件伏位冬出刀分刻勺匹升单卮厘双叠口只合名周啖回场块坡堂堆墙壳壶夏夜天头季客家寸对寻尺尾层山岁"
    "岭常幢年座张忽户手扎打担挑捆撮支斗斛斤日旬时春曲更月本条杯板枝根桶棵毫江泡溪炮煲片瓶盆盏盒盘石砣碗碟秋秒程窠笼"
    "管箩箱篮簋粒纪线罐网罗群脚腔袋袭课贯贴跳身辆辈道里针钟钧钱钵铢铺锅锱阙队阵面页顶颗首"
)

# What is looked for, in this order, and how group 1 of it is read. Long digit strings without a
# measure word are spelled out (phone numbers, years, codes); what is left is read as a number.
_RULES: tuple[tuple[re.Pattern[str], Callable[[str], str]], ...] = (
    (re.compile(rf"\D+((?:{_YEAR})?(?:{_DAY})?)"), _read_date),
    (re.compile(rf"\D+(\d+(?:\.\d+)?[多余几]?{_MONEY_UNIT}(?:\d{_MONEY_UNIT}?)?)"), _read_inside),
    (re.compile(r"\D((?:\+?86 ?)?1(?:[38]\d|5[0-35-9]|7[678]|9[89])\d{8})\D"), read_digits),  # mobile
    (re.compile(r"\D((?:0(?:10|2[1-3]|[3-9]\d{2})-?)?[1-9]\d{6,7})\D"), read_digits),  # land line
    (re.compile(r"(\d+/\d+)"), _read_fraction),
    (re.compile(r"(\d+(?:\.\d+)?%)"), lambda percent: "百分之" + read_number(percent[:-1])),
    (re.compile(rf"(\d+(?:\.\d+)?)[多余几]?(?:[{_MEASURE}]|[千微]克|千米)"), read_number),
    (re.compile(r"(\d{4,32})"), read_digits),
    (re.compile(rf"({_NUMBER.pattern})"), read_number),
)
# B二B and P二P are B2B and P2P again.
_LETTER_TWO_LETTER = re.compile(r"([a-zA-Z]+)二([a-zA-Z]+)")

# ASCII, general and CJK punctuation, full-width forms (not ．, which keeps its decimals apart).
_PUNCTUATION = (
    (0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E), (0xB7, 0xB7), (0x2013, 0x2014),
    (0x2018, 0x2019), (0x201B, 0x201F), (0x2026, 0x2027), (0x3001, 0x3003), (0x3008, 0x3011),
    (0x3014, 0x301F), (0x3030, 0x3030), (0x303E, 0x303F), (0xFE4F, 0xFE4F), (0xFF01, 0xFF0D),
    (0xFF0F, 0xFF0F), (0xFF1A, 0xFF20), (0xFF3B, 0xFF40), (0xFF5B, 0xFF64),
)  # fmt: skip
_TO_COMMA = {code: "," for first, last in _PUNCTUATION for code in range(first, last + 1)}


def read_aloud(text: str) -> str:
    """Numbers of `text` in characters, every punctuation mark a comma."""
    if re.search(r"\d", text):
        text = f"^{text}$".replace("％", "%")  # rules look at the character before and after
        for pattern, read in _RULES:
            # A number is looked up from the left again, so equal digits are read in order.
            for match in pattern.finditer(text):
                if match[1]:
                    text = text.replace(match[1], read(match[1]), 1)
    if "二" in text:
        text = _LETTER_TWO_LETTER.sub(r"\g<1>2\2", text)
    return text.lstrip("^").rstrip("$").translate(_TO_COMMA)


def pinyin(text: str) -> str:
    """`你好` → `ni3hao3`; the neutral tone is 5, anything that is not Chinese stays."""
    import pypinyin

    return "".join(pypinyin.lazy_pinyin(text, style=pypinyin.Style.TONE3, neutral_tone_with_five=True))
