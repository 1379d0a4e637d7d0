module @scanned {
  func.func public @main(%x: tensor<4x8xf32>, %gate: tensor<3x8x16xf32>, %up: tensor<3x8x16xf32>, %down: tensor<3x16x8xf32>) -> (tensor<f32>, tensor<3x8x16xf32>, tensor<3x8x16xf32>, tensor<3x16x8xf32>) {
    %1 = stablehlo.constant dense<0> : tensor<i32>
    %2 = stablehlo.constant dense<1> : tensor<i32>
    %3 = stablehlo.constant dense<2> : tensor<i32>
    %4 = stablehlo.constant dense<3> : tensor<i32>
    %5 = stablehlo.constant dense<0.0> : tensor<3x4x8xf32>
    %6 = stablehlo.constant dense<0.0> : tensor<3x4x16xf32>
    %11:4 = stablehlo.while(%7 = %1, %8 = %x, %9 = %5, %10 = %6) : tensor<i32>, tensor<4x8xf32>, tensor<3x4x8xf32>, tensor<3x4x16xf32>
    cond {
      %12 = stablehlo.compare LT, %7, %4, SIGNED : (tensor<i32>, tensor<i32>) -> tensor<i1>
      stablehlo.return %12 : tensor<i1>
    } do {
      %13 = stablehlo.dynamic_slice %gate, %7, %1, %1, sizes = [1, 8, 16] : (tensor<3x8x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x8x16xf32>
      %14 = stablehlo.reshape %13 : (tensor<1x8x16xf32>) -> tensor<8x16xf32>
      %15 = stablehlo.dynamic_slice %up, %7, %1, %1, sizes = [1, 8, 16] : (tensor<3x8x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x8x16xf32>
      %16 = stablehlo.reshape %15 : (tensor<1x8x16xf32>) -> tensor<8x16xf32>
      %17 = stablehlo.dynamic_slice %down, %7, %1, %1, sizes = [1, 16, 8] : (tensor<3x16x8xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x16x8xf32>
      %18 = stablehlo.reshape %17 : (tensor<1x16x8xf32>) -> tensor<16x8xf32>
      %19:2 = func.call @layer.0(%8, %14, %16, %18) : (tensor<4x8xf32>, tensor<8x16xf32>, tensor<8x16xf32>, tensor<16x8xf32>) -> (tensor<4x8xf32>, tensor<4x16xf32>)
      %20 = stablehlo.reshape %8 : (tensor<4x8xf32>) -> tensor<1x4x8xf32>
      %21 = stablehlo.dynamic_update_slice %9, %20, %7, %1, %1 : (tensor<3x4x8xf32>, tensor<1x4x8xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<3x4x8xf32>
      %22 = stablehlo.reshape %19#1 : (tensor<4x16xf32>) -> tensor<1x4x16xf32>
      %23 = stablehlo.dynamic_update_slice %10, %22, %7, %1, %1 : (tensor<3x4x16xf32>, tensor<1x4x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<3x4x16xf32>
      %24 = stablehlo.add %7, %2 : tensor<i32>
      stablehlo.return %24, %19#0, %21, %23 : tensor<i32>, tensor<4x8xf32>, tensor<3x4x8xf32>, tensor<3x4x16xf32>
    }
    %25 = stablehlo.multiply %11#1, %11#1 : tensor<4x8xf32>
    %27 = stablehlo.constant dense<0.0> : tensor<f32>
    %26 = stablehlo.reduce(%25 init: %27) applies stablehlo.add across dimensions = [0, 1] : (tensor<4x8xf32>, tensor<f32>) -> tensor<f32>
    %28 = stablehlo.constant dense<0x3D000000> : tensor<f32>
    %29 = stablehlo.multiply %26, %28 : tensor<f32>
    %30 = stablehlo.constant dense<0x3F800000> : tensor<f32>
    %31 = stablehlo.multiply %30, %28 : tensor<f32>
    %32 = stablehlo.broadcast_in_dim %31, dims = [] : (tensor<f32>) -> tensor<4x8xf32>
    %33 = stablehlo.multiply %32, %11#1 : tensor<4x8xf32>
    %34 = stablehlo.add %33, %33 : tensor<4x8xf32>
    %35 = stablehlo.iota dim = 0 : tensor<3xi32>
    %37 = stablehlo.constant dense<0> : tensor<i32>
    %38 = stablehlo.constant dense<1> : tensor<i32>
    %39 = stablehlo.constant dense<2> : tensor<i32>
    %40 = stablehlo.constant dense<3> : tensor<i32>
    %41 = stablehlo.constant dense<0.0> : tensor<3x8x16xf32>
    %42 = stablehlo.constant dense<0.0> : tensor<3x8x16xf32>
    %43 = stablehlo.constant dense<0.0> : tensor<3x16x8xf32>
    %49:5 = stablehlo.while(%44 = %37, %45 = %34, %46 = %41, %47 = %42, %48 = %43) : tensor<i32>, tensor<4x8xf32>, tensor<3x8x16xf32>, tensor<3x8x16xf32>, tensor<3x16x8xf32>
    cond {
      %50 = stablehlo.compare LT, %44, %40, SIGNED : (tensor<i32>, tensor<i32>) -> tensor<i1>
      stablehlo.return %50 : tensor<i1>
    } do {
      %51 = stablehlo.subtract %39, %44 : tensor<i32>
      %52 = stablehlo.dynamic_slice %11#2, %51, %37, %37, sizes = [1, 4, 8] : (tensor<3x4x8xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x4x8xf32>
      %53 = stablehlo.reshape %52 : (tensor<1x4x8xf32>) -> tensor<4x8xf32>
      %54 = stablehlo.dynamic_slice %11#3, %51, %37, %37, sizes = [1, 4, 16] : (tensor<3x4x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x4x16xf32>
      %55 = stablehlo.reshape %54 : (tensor<1x4x16xf32>) -> tensor<4x16xf32>
      %56 = stablehlo.dynamic_slice %gate, %51, %37, %37, sizes = [1, 8, 16] : (tensor<3x8x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x8x16xf32>
      %57 = stablehlo.reshape %56 : (tensor<1x8x16xf32>) -> tensor<8x16xf32>
      %58 = stablehlo.dynamic_slice %up, %51, %37, %37, sizes = [1, 8, 16] : (tensor<3x8x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x8x16xf32>
      %59 = stablehlo.reshape %58 : (tensor<1x8x16xf32>) -> tensor<8x16xf32>
      %60 = stablehlo.dynamic_slice %down, %51, %37, %37, sizes = [1, 16, 8] : (tensor<3x16x8xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x16x8xf32>
      %61 = stablehlo.reshape %60 : (tensor<1x16x8xf32>) -> tensor<16x8xf32>
      %62 = stablehlo.dynamic_slice %35, %51, sizes = [1] : (tensor<3xi32>, tensor<i32>) -> tensor<1xi32>
      %63 = stablehlo.reshape %62 : (tensor<1xi32>) -> tensor<i32>
      %64:6 = stablehlo.optimization_barrier %53, %57, %59, %61, %55, %45 : tensor<4x8xf32>, tensor<8x16xf32>, tensor<8x16xf32>, tensor<16x8xf32>, tensor<4x16xf32>, tensor<4x8xf32>
      %65 = stablehlo.dot_general %64#0, %64#1, contracting_dims = [1] x [0] : (tensor<4x8xf32>, tensor<8x16xf32>) -> tensor<4x16xf32>
      %66 = stablehlo.logistic %65 : tensor<4x16xf32>
      %67 = stablehlo.multiply %65, %66 : tensor<4x16xf32>
      %68 = stablehlo.dot_general %64#0, %64#2, contracting_dims = [1] x [0] : (tensor<4x8xf32>, tensor<8x16xf32>) -> tensor<4x16xf32>
      %69 = stablehlo.dot_general %64#5, %64#3, contracting_dims = [1] x [1] : (tensor<4x8xf32>, tensor<16x8xf32>) -> tensor<4x16xf32>
      %70 = stablehlo.dot_general %64#4, %64#5, contracting_dims = [0] x [0] : (tensor<4x16xf32>, tensor<4x8xf32>) -> tensor<16x8xf32>
      %71 = stablehlo.multiply %69, %68 : tensor<4x16xf32>
      %72 = stablehlo.multiply %69, %67 : tensor<4x16xf32>
      %73 = stablehlo.dot_general %72, %64#2, contracting_dims = [1] x [1] : (tensor<4x16xf32>, tensor<8x16xf32>) -> tensor<4x8xf32>
      %74 = stablehlo.dot_general %64#0, %72, contracting_dims = [0] x [0] : (tensor<4x8xf32>, tensor<4x16xf32>) -> tensor<8x16xf32>
      %75 = stablehlo.add %64#5, %73 : tensor<4x8xf32>
      %76 = stablehlo.multiply %71, %66 : tensor<4x16xf32>
      %77 = stablehlo.multiply %71, %65 : tensor<4x16xf32>
      %78 = stablehlo.constant dense<0x3F800000> : tensor<4x16xf32>
      %79 = stablehlo.subtract %78, %66 : tensor<4x16xf32>
      %80 = stablehlo.multiply %66, %79 : tensor<4x16xf32>
      %81 = stablehlo.multiply %77, %80 : tensor<4x16xf32>
      %82 = stablehlo.add %76, %81 : tensor<4x16xf32>
      %83 = stablehlo.dot_general %82, %64#1, contracting_dims = [1] x [1] : (tensor<4x16xf32>, tensor<8x16xf32>) -> tensor<4x8xf32>
      %84 = stablehlo.dot_general %64#0, %82, contracting_dims = [0] x [0] : (tensor<4x8xf32>, tensor<4x16xf32>) -> tensor<8x16xf32>
      %85 = stablehlo.add %75, %83 : tensor<4x8xf32>
      %86 = stablehlo.reshape %84 : (tensor<8x16xf32>) -> tensor<1x8x16xf32>
      %87 = stablehlo.dynamic_update_slice %46, %86, %51, %37, %37 : (tensor<3x8x16xf32>, tensor<1x8x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<3x8x16xf32>
      %88 = stablehlo.reshape %74 : (tensor<8x16xf32>) -> tensor<1x8x16xf32>
      %89 = stablehlo.dynamic_update_slice %47, %88, %51, %37, %37 : (tensor<3x8x16xf32>, tensor<1x8x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<3x8x16xf32>
      %90 = stablehlo.reshape %70 : (tensor<16x8xf32>) -> tensor<1x16x8xf32>
      %91 = stablehlo.dynamic_update_slice %48, %90, %51, %37, %37 : (tensor<3x16x8xf32>, tensor<1x16x8xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<3x16x8xf32>
      %92 = stablehlo.add %44, %38 : tensor<i32>
      stablehlo.return %92, %85, %87, %89, %91 : tensor<i32>, tensor<4x8xf32>, tensor<3x8x16xf32>, tensor<3x8x16xf32>, tensor<3x16x8xf32>
    }
    // loss, d_gate, d_up, d_down
    return %29, %49#2, %49#3, %49#4 : tensor<f32>, tensor<3x8x16xf32>, tensor<3x8x16xf32>, tensor<3x16x8xf32>
  }
  func.func private @layer.0(%arg0: tensor<4x8xf32>, %arg1: tensor<8x16xf32>, %arg2: tensor<8x16xf32>, %arg3: tensor<16x8xf32>) -> (tensor<4x8xf32>, tensor<4x16xf32>) {
    %0 = stablehlo.dot_general %arg0, %arg1, contracting_dims = [1] x [0] : (tensor<4x8xf32>, tensor<8x16xf32>) -> tensor<4x16xf32>
    %1 = stablehlo.logistic %0 : tensor<4x16xf32>
    %2 = stablehlo.multiply %0, %1 : tensor<4x16xf32>
    %3 = stablehlo.dot_general %arg0, %arg2, contracting_dims = [1] x [0] : (tensor<4x8xf32>, tensor<8x16xf32>) -> tensor<4x16xf32>
    %4 = stablehlo.multiply %2, %3 : tensor<4x16xf32>
    %5 = stablehlo.dot_general %4, %arg3, contracting_dims = [1] x [0] : (tensor<4x16xf32>, tensor<16x8xf32>) -> tensor<4x8xf32>
    %6 = stablehlo.add %arg0, %5 : tensor<4x8xf32>
    return %6, %4 : tensor<4x8xf32>, tensor<4x16xf32>
  }
}
