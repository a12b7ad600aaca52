//! A check that cannot fail proves nothing: NaN at each place fails the comparator and every public
//! check value.

use crate::support::{compare, largest, max_difference, worse};
use cltlab::intervene::{Deviation, EdgeCheck};

#[test]
fn nan_lengths_and_emptiness_are_faults() {
    let plain = [1.0f32, 2.0, 3.0];
    assert_eq!(compare(&plain, &[1.0, 2.5, 3.0]).unwrap(), (0.5, 1));
    for at in 0..3 {
        let mut broken = plain;
        broken[at] = f32::NAN;
        for (got, expected) in [(&broken, &plain), (&plain, &broken), (&broken, &broken)] {
            assert!(compare(got, expected).unwrap_err().contains(&format!("at {at}")));
            assert!(std::panic::catch_unwind(|| max_difference(got, expected)).is_err());
        }
        assert!(std::panic::catch_unwind(|| largest(&broken)).is_err());
    }
    assert!(compare(&plain, &plain[..2]).is_err() && compare::<f32>(&[], &[]).is_err());
    assert!(compare(&[f64::INFINITY], &[1.0]).unwrap().0.is_infinite());
    assert_eq!(compare(&[f64::INFINITY], &[f64::INFINITY]).unwrap().0, 0.0);
    assert!(std::panic::catch_unwind(|| worse(f64::NAN, 1.0)).is_err() && std::panic::catch_unwind(|| worse(1.0, f64::NAN)).is_err());
}

#[test]
fn edges_with_nan_do_not_hold() {
    let good = Deviation { effects: 2, largest: 1.0, max_abs: 1e-7 };
    assert!(EdgeCheck { sources: 1, features: good, logits: good }.holds(1e-5));
    for bad in [Deviation { max_abs: f64::NAN, ..good }, Deviation { largest: f64::NAN, ..good }, Deviation { largest: f64::INFINITY, ..good }] {
        for check in [EdgeCheck { sources: 1, features: bad, logits: good }, EdgeCheck { sources: 1, features: good, logits: bad }] {
            assert!(!check.holds(1e9), "{check}");
            let path = crate::support::scratch("edge-check").join("check.json");
            assert_eq!(check.save(&path).unwrap_err().kind(), cltlab::ErrorKind::NotFinite);
            assert!(!path.exists());
        }
    }
    // In the order in which effects come.
    for effects in [[f64::NAN, 1.0, 2.0], [1.0, f64::NAN, 2.0], [1.0, 2.0, f64::NAN]] {
        for swapped in [false, true] {
            let mut seen = Deviation::default();
            effects.iter().for_each(|&effect| if swapped { seen.see(1.0, effect) } else { seen.see(effect, 1.0) });
            assert!(seen.relative().is_nan(), "{effects:?}");
        }
    }
}
