"""Words of the sample shop: departments, categories, and the words of product names and descriptions.

All values are constants. A product's words indicate its category and nothing else, so a model that reads text can place
a new product.
"""

from __future__ import annotations

DEPARTMENTS: dict[str, dict[str, str]] = {
    "Kitchen": {
        "Cookware": "pan pot wok casserole skillet nonstick cast-iron simmer sear lid oven hob",
        "Coffee": "espresso grinder kettle beans brew crema filter barista portafilter roast drip mug",
        "Baking": "tin whisk dough rolling-pin flour cake muffin proofing crust icing bread scale",
        "Knives": "blade chef santoku paring steel edge sharpen carving handle forged board honing",
        "Storage": "jar container airtight pantry stackable leftover freezer bamboo label canister fresh box",
    },
    "Electronics": {
        "Headphones": "headset earbuds bass noise-cancelling wireless bluetooth treble cushion listening clip",
        "Keyboards": "mechanical keycap switch typing backlit layout ergonomic wrist hotkey tactile desk numpad",
        "Cameras": "lens aperture zoom tripod shutter mirrorless exposure sensor focus portrait flash megapixel",
        "Chargers": "usb-c cable adapter wattage powerbank plug charging port travel-adapter socket volt battery",
        "Smarthome": "thermostat bulb hub doorbell sensorless routine motion voice automation dimmer zigbee remote",
    },
    "Books": {
        "Crime": "detective murder suspect mystery clue inspector alibi noir thriller evidence witness case",
        "Fantasy": "dragon sword magic kingdom quest wizard elf prophecy realm spell throne saga",
        "Science": "physics universe evolution theory quantum experiment biology research cell galaxy atom data",
        "Travel": "journey guide island map railway backpack temple atlas route border city hostel",
        "Cookbooks": "recipe vegan sauce curry pasta seasonal menu vegetable spice dinner noodle salad",
    },
    "Sports": {
        "Running": "marathon sneaker stride trail-shoe pace sprint cadence jogger sole race lightweight mile",
        "Cycling": "bike saddle pedal helmet gear frame derailleur tyre chain pump spoke handlebar",
        "Yoga": "mat stretch asana breath strap bolster balance pose cork meditation flow studio",
        "Climbing": "rope harness carabiner chalk boulder belay crag grip quickdraw anchor wall peak",
        "Swimming": "goggles lap pool fin kickboard swimsuit cap stroke triathlon water dive snorkel",
    },
    "Garden": {
        "Seeds": "tomato basil sow germinate heirloom sprout herb lettuce packet seedling harvest pepper",
        "Tools": "spade rake pruner trowel fork hoe secateurs shears wheelbarrow dig soil glove",
        "Furniture": "bench parasol lounger teak table patio hammock chair terrace wicker deck cushioned",
        "Barbecue": "grill charcoal smoker tongs skewer flame gas-burner brisket rack marinade rub ember",
        "Lighting": "lantern solar stringlight path lamp lumen outdoor stake glow dusk timer spotlight",
    },
    "Toys": {
        "Puzzles": "jigsaw piece brain-teaser tangram cube riddle maze pattern shape solve assemble picture",
        "Building": "brick block crane tower magnetic construct stud tile minifigure castle bridge robotkit",
        "Dolls": "doll dress plush teddy dollhouse stroller outfit hair-brush pretend cuddle nursery bunny",
        "Boardgames": "dice card strategy token player round tile-laying meeple cooperative score rulebook turn",
        "Vehicles": "truck train racetrack loader tractor rail excavator engine car lorry wheel garage",
    },
    "Fashion": {
        "Shirts": "cotton collar sleeve linen button tee polo slim oxford fabric hem flannel",
        "Shoes": "leather sneaker-low boot lace heel loafer suede insole sandal oak-sole welt toe",
        "Bags": "tote backpack-roll canvas zip shoulder-strap pocket clutch crossbody messenger buckle satchel lining",
        "Jewellery": "ring necklace silver pendant pearl bracelet gold earring gemstone clasp engraved charm",
        "Outerwear": "jacket parka down windproof hood rain zipper quilted trench coat layer insulated",
    },
    "Beauty": {
        "Skincare": "serum moisturiser cleanser retinol hydration toner spf glow-cream sensitive hyaluronic night balm",
        "Makeup": "lipstick mascara blush palette foundation concealer eyeliner matte shimmer brush contour shade",
        "Haircare": "shampoo conditioner curl keratin scalp frizz mask styling argan volume dye comb",
        "Perfume": "fragrance jasmine vanilla bergamot musk eau bottle note amber cedar spray sandalwood",
        "Shaving": "razor beard foam trimmer aftershave cartridge stubble safety-razor oil whisker strop lather",
    },
}
"""Department -> category -> words; the first ones form the product's name."""

ADJECTIVES = [
    "Classic",
    "Nordic",
    "Pure",
    "Urban",
    "Prime",
    "Little",
    "Bold",
    "Gentle",
    "Smart",
    "Vivid",
    "Royal",
    "Simple",
    "Bright",
    "Quiet",
    "Swift",
    "Daily",
]
BRANDS = [
    "Arlo",
    "Benna",
    "Corvid",
    "Delmar",
    "Elvin",
    "Fjord",
    "Gilda",
    "Hanso",
    "Ilmar",
    "Juno",
    "Kestrel",
    "Lumo",
    "Maren",
    "Nivo",
    "Orsa",
    "Pavo",
]
MATERIALS = [
    "steel",
    "cotton",
    "bamboo",
    "glass",
    "recycled",
    "oak",
    "aluminium",
    "ceramic",
]
COUNTRIES = [
    "DE",
    "FR",
    "US",
    "GB",
    "ES",
    "IT",
    "PL",
    "SE",
]
FILLER = [
    "with",
    "a",
    "for",
    "every",
    "day",
    "made",
    "to",
    "last",
    "and",
    "easy",
    "to",
    "use",
    "in",
    "our",
]
