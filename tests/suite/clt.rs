//! Encode and decode against loops written out.

use crate::numbers::Numbers;
use crate::support::{assert_close, says, scratch, worse};
use candle_core::{DType, Device, Tensor};
use cltlab::clt::{Activation, Clt, CltConfig, CltLoadConfig, CltSaveConfig, FeatureId, LayerCode, LayerWeights, SparseCode};
use cltlab::ErrorKind;

pub fn random_clt(activation: Activation, layers: usize, width: usize, features: usize, seed: u64) -> Clt {
    let mut numbers = Numbers::new(seed);
    let mut tensor = |shape: &[usize]| Tensor::from_vec(numbers.take(shape.iter().product()), shape, &Device::Cpu).unwrap();
    let weights = (0..layers)
        .map(|l| LayerWeights {
            encoder: tensor(&[features, width]),
            encoder_bias: tensor(&[features]),
            threshold: matches!(activation, Activation::JumpRelu { .. }).then(|| tensor(&[features]).abs().unwrap()),
            decoder: tensor(&[features, layers - l, width]),
            decoder_bias: tensor(&[width]),
            skip: None,
        })
        .collect();
    Clt::new(CltConfig { layers, width, features, activation, ..CltConfig::default() }, weights).unwrap()
}

#[test]
fn encode_and_decode_equal_loops() {
    // 100 columns are a whole tile and a rest, 70 features no multiple of eight.
    let (l, d, f, t) = (3, 100, 70, 9);
    for activation in [Activation::Relu, Activation::JumpRelu { threshold: 0.1, bandwidth: 0.1 }, Activation::TopK { k: 5 }] {
        let clt = random_clt(activation.clone(), l, d, f, 7);
        let x: Vec<Tensor> = (0..l).map(|i| Tensor::from_vec(Numbers::new(20 + i as u64).take(t * d), (t, d), &Device::Cpu).unwrap()).collect();
        let codes: Vec<LayerCode> = x.iter().enumerate().map(|(i, x)| clt.encode_layer(i, x).unwrap()).collect();
        let mut dense = vec![vec![vec![0f64; f]; t]; l];
        for i in 0..l {
            let w = clt.encoder(i).unwrap().to_vec2::<f32>().unwrap();
            let b = clt.encoder_bias(i).unwrap().to_vec1::<f32>().unwrap();
            let rows = x[i].to_vec2::<f32>().unwrap();
            for p in 0..t {
                let h: Vec<f64> = (0..f).map(|j| b[j] as f64 + (0..d).map(|c| w[j][c] as f64 * rows[p][c] as f64).sum::<f64>()).collect();
                let mut order: Vec<f64> = h.clone();
                order.sort_by(|a, b| b.total_cmp(a));
                for j in 0..f {
                    let floor = match &activation {
                        Activation::JumpRelu { .. } => clt.threshold(i).unwrap().unwrap().to_vec1::<f32>().unwrap()[j] as f64,
                        Activation::TopK { k } => order[*k].max(0.0),
                        _ => 0.0,
                    };
                    dense[i][p][j] = if h[j] > floor { h[j] } else { 0.0 };
                }
            }
        }
        for i in 0..l {
            for p in 0..t {
                assert!(codes[i].token(p).0.windows(2).all(|pair| pair[0] < pair[1]), "features ascend");
                for j in 0..f {
                    assert!((codes[i].value(p, j as u32) as f64 - dense[i][p][j]).abs() < 1e-4, "{activation:?} layer {i} token {p} feature {j}");
                }
            }
        }
        let decoded = clt.decode(&SparseCode { layers: codes }, &[]).unwrap();
        let (mut worst, mut largest) = (0f64, 0f64);
        for target in 0..l {
            let bias = clt.decoder_bias(target).unwrap().to_vec1::<f32>().unwrap();
            let got = decoded[target].to_vec2::<f32>().unwrap();
            for p in 0..t {
                for c in 0..d {
                    let mut expected = bias[c] as f64;
                    for source in 0..=target {
                        let w = clt.decoder(source).unwrap().to_vec3::<f32>().unwrap();
                        expected += (0..f).map(|j| dense[source][p][j] * w[j][target - source][c] as f64).sum::<f64>();
                    }
                    worst = worse(worst, (got[p][c] as f64 - expected).abs());
                    largest = worse(largest, expected.abs());
                }
            }
        }
        assert!(worst < 1e-6 * largest, "{activation:?}: {worst} of {largest}");
    }
}

#[test]
fn top_k_keeps_no_negative_value_and_breaks_ties_low() {
    let weights = LayerWeights {
        encoder: Tensor::new(&[[1f32], [1.0], [-1.0], [1.0], [0.5]], &Device::Cpu).unwrap(),
        encoder_bias: Tensor::zeros(5, candle_core::DType::F32, &Device::Cpu).unwrap(),
        threshold: None,
        decoder: Tensor::ones((5, 1, 1), candle_core::DType::F32, &Device::Cpu).unwrap(),
        decoder_bias: Tensor::zeros(1, candle_core::DType::F32, &Device::Cpu).unwrap(),
        skip: None,
    };
    let config = CltConfig { layers: 1, width: 1, features: 5, activation: Activation::TopK { k: 2 }, ..CltConfig::default() };
    let clt = Clt::new(config, vec![weights]).unwrap();
    let code = clt.encode_layer(0, &Tensor::new(&[[2f32], [-3.0], [0.0]], &Device::Cpu).unwrap()).unwrap();
    assert_eq!(code.token(0), (&[0u32, 1][..], &[2f32, 2.0][..]));
    assert_eq!(code.token(1), (&[2u32][..], &[3f32][..]));
    assert_eq!(code.token(2).0.len(), 0);
}

#[test]
fn codes_can_be_edited() {
    let clt = random_clt(Activation::Relu, 1, 8, 16, 3);
    let x = Tensor::from_vec(Numbers::new(1).take(4 * 8), (4, 8), &Device::Cpu).unwrap();
    let mut code = clt.encode_layer(0, &x).unwrap();
    let before = code.clone();
    code.set(2, 5, 9.0).unwrap();
    assert_eq!(code.value(2, 5), 9.0);
    code.set(2, 5, 0.0).unwrap();
    assert_eq!(code.value(2, 5), 0.0);
    code.set(2, 5, before.value(2, 5)).unwrap();
    assert_eq!(code, before);
    assert_eq!(code.set(4, 0, 1.0).unwrap_err().kind(), ErrorKind::BadInput);
    let mut whole = SparseCode { layers: vec![code] };
    whole.zero_position(0);
    assert_eq!(whole.layers[0].token(0).0.len(), 0);
    assert_eq!(whole.layers[0].token(1), before.token(1));
    assert_eq!(whole.active(), before.active() - before.token(0).0.len());
}

#[test]
fn bad_inputs_have_typed_errors() {
    let clt = random_clt(Activation::Relu, 2, 8, 16, 3);
    let wide = Tensor::zeros((4, 9), candle_core::DType::F32, &Device::Cpu).unwrap();
    assert_eq!(clt.encode_layer(0, &wide).unwrap_err().kind(), ErrorKind::BadTensor);
    assert_eq!(clt.encode_layer(2, &wide).unwrap_err().kind(), ErrorKind::BadInput);
    let nan = Tensor::new(&[[f32::NAN; 8]], &Device::Cpu).unwrap();
    assert_eq!(clt.encode_layer(0, &nan).unwrap_err().kind(), ErrorKind::NotFinite);
    assert_eq!(clt.decoder_rows(0, &[16]).unwrap_err().kind(), ErrorKind::BadInput);
    assert_eq!(clt.decode(&SparseCode::default(), &[]).unwrap_err().kind(), ErrorKind::BadInput);
    let mut beyond = LayerCode::empty(1);
    beyond.set(0, 99, 1.0).unwrap();
    assert_eq!(clt.decode_target(&[beyond], 0, None).unwrap_err().kind(), ErrorKind::BadInput);
    for (config, field) in [
        (CltConfig { features: 0, ..CltConfig::default() }, "features"),
        (CltConfig { layers: 0, ..CltConfig::default() }, "layers"),
        (CltConfig { features: 8, activation: Activation::TopK { k: 9 }, ..CltConfig::default() }, "k"),
        (CltConfig { activation: Activation::JumpRelu { threshold: 0.0, bandwidth: 1.0 }, ..CltConfig::default() }, "threshold"),
    ] {
        let error = config.validate().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadConfig);
        assert!(error.to_string().contains(field), "{error}");
    }
    let place = scratch("clt_bad");
    assert!(clt.save(place.join("a"), &Default::default()).is_ok());
    assert_eq!(clt.save("/proc/nowhere/clt", &Default::default()).unwrap_err().kind(), ErrorKind::MissingFile);
}

#[test]
fn codes_are_checked_where_they_are_made() {
    let nan = [f32::NAN, 1.0, 1.0];
    let bad: [(&[u32], &[u32], &[f32], ErrorKind, &[&str]); 11] = [
        (&[], &[], &[], ErrorKind::BadInput, &["offsets", "none"]),
        (&[1, 3], &[0, 1, 2], &[1.0; 3], ErrorKind::BadInput, &["offsets[0]", "got 1"]),
        (&[0, 2, 1, 3], &[0, 1, 2], &[1.0; 3], ErrorKind::BadInput, &["offsets[2]", "got 1", "offsets[1], 2"]),
        (&[0, u32::MAX, 3], &[0, 1, 2], &[1.0; 3], ErrorKind::BadInput, &["offsets[2]", "got 3", "4294967295"]),
        (&[0, 2], &[0, 1, 2], &[1.0; 3], ErrorKind::BadInput, &["offsets[1], the last", "got 2", "3"]),
        (&[0, 1000], &[0, 1, 2], &[1.0; 3], ErrorKind::BadInput, &["offsets[1], the last", "got 1000", "3"]),
        (&[0], &[0], &[1.0], ErrorKind::BadInput, &["offsets[0], the last", "got 0", "1"]),
        (&[0, 3], &[0, 1, 2], &[1.0; 2], ErrorKind::BadInput, &["values", "got 2", "3"]),
        (&[0, 2, 3], &[1, 1, 0], &[1.0; 3], ErrorKind::BadInput, &["features of token 0", "1 after 1"]),
        (&[0, 1, 3], &[5, 2, 0], &[1.0; 3], ErrorKind::BadInput, &["features of token 1", "0 after 2"]),
        (&[0, 2, 3], &[0, 1, 2], &nan, ErrorKind::NotFinite, &["feature 0 at token 0", "NaN"]),
    ];
    for (offsets, features, values, kind, words) in bad {
        says(&LayerCode::new(offsets.to_vec(), features.to_vec(), values.to_vec()).unwrap_err(), kind, words);
    }
    says(&LayerCode::empty(1).set(0, 0, f32::INFINITY).unwrap_err(), ErrorKind::NotFinite, &["LayerCode::set", "inf"]);
    assert_eq!(LayerCode::new(vec![0], vec![], vec![]).unwrap(), LayerCode::default());
    // Taken apart and put together again, and what it decodes to against the sum by hand.
    let clt = random_clt(Activation::Relu, 1, 8, 16, 4);
    let code = LayerCode::new(vec![0, 2, 2, 3], vec![3, 15, 0], vec![0.5, -2.0, 1.5]).unwrap();
    assert_eq!(LayerCode::new(code.offsets().to_vec(), code.features().to_vec(), code.values().to_vec()).unwrap(), code);
    let rows = clt.decoder(0).unwrap().reshape((16, 8)).unwrap().to_vec2::<f32>().unwrap();
    let bias = clt.decoder_bias(0).unwrap().to_vec1::<f32>().unwrap();
    let by_hand: Vec<f32> = [vec![(3, 0.5), (15, -2.0)], vec![], vec![(0, 1.5f32)]]
        .iter()
        .flat_map(|token| (0..8).map(|i| bias[i] + token.iter().map(|&(f, value): &(usize, f32)| value * rows[f][i]).sum::<f32>()).collect::<Vec<_>>())
        .collect();
    let decoded = clt.decode_target(std::slice::from_ref(&code), 0, None).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_close("decoded", &decoded, &by_hand, 1e-6);
    // Codes of unequal length, and a feature that the CLT does not have.
    let clt = random_clt(Activation::Relu, 2, 8, 16, 5);
    let unequal = SparseCode { layers: vec![code.clone(), LayerCode::empty(2)] };
    says(&clt.decode(&unequal, &[]).unwrap_err(), ErrorKind::BadInput, &["code of layer 1: rows", "got 2", "3"]);
    let beyond = SparseCode { layers: vec![code, LayerCode::new(vec![0, 0, 0, 1], vec![16], vec![1.0]).unwrap()] };
    says(&clt.decode(&beyond, &[]).unwrap_err(), ErrorKind::BadInput, &["code of layer 1: feature", "got 16", "less than 16"]);
    assert_eq!(beyond.value(0, FeatureId { layer: 0, feature: 3 + (1 << 32) }), 0.0);
}

#[test]
fn half_precision_files_hold_rounded_matrices_and_exact_vectors() {
    let clt = random_clt(Activation::JumpRelu { threshold: 0.1, bandwidth: 0.1 }, 2, 24, 40, 3);
    for (dtype, name) in [(DType::BF16, "bf16"), (DType::F16, "f16")] {
        let folder = scratch("clt-half").join(name);
        clt.save(&folder, &CltSaveConfig { dtype, ..Default::default() }).unwrap();
        // What candle's own reader and rounding say.
        let rounded = |tensor: &Tensor| tensor.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let encoder = candle_core::safetensors::load(folder.join("W_enc_1.safetensors"), &Device::Cpu).unwrap();
        let decoder = candle_core::safetensors::load(folder.join("W_dec_0.safetensors"), &Device::Cpu).unwrap();
        assert_eq!((encoder["W_enc_1"].dtype(), decoder["W_dec_0"].dtype(), decoder["W_dec_0"].dims()), (dtype, dtype, &[40, 2, 24][..]));
        assert_eq!((encoder["b_enc_1"].dtype(), encoder["threshold_1"].dtype()), (DType::F32, DType::F32));
        let back = Clt::load(folder, &CltLoadConfig::on(&Device::Cpu)).unwrap();
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for l in 0..2 {
            assert_eq!(values(back.encoder(l).unwrap()), rounded(clt.encoder(l).unwrap()));
            assert_eq!(values(back.decoder(l).unwrap()), rounded(clt.decoder(l).unwrap()));
            assert_eq!(values(back.threshold(l).unwrap().unwrap()), values(clt.threshold(l).unwrap().unwrap()));
            assert_eq!(values(back.encoder_bias(l).unwrap()), values(clt.encoder_bias(l).unwrap()));
        }
    }
    let refused = clt.save(scratch("clt-half").join("f64"), &CltSaveConfig { dtype: DType::F64, ..Default::default() }).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
}
